use super::rig::{Rig, get, send};
use crate::{StoreError, service::Access};

fn ids(json: &serde_json::Value) -> Vec<String> {
    json["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_list_is_followed_by_its_links_and_has_every_task_once_though_others_come() {
    let rig = Rig::new().await;
    let service = rig.service();
    let mut wanted = Vec::new();
    for _ in 0..7 {
        wanted.push(rig.accept("a b&c=\u{e9}").await.to_string());
        rig.accept("other").await;
    }
    wanted.sort_by(|one, other| other.cmp(one));
    let (mut target, mut found) =
        ("/?state=queued,running&state=queued&name=a+b%26c%3D%C3%A9&limit=3".to_owned(), Vec::new());
    loop {
        let reply = get(&service, &target).await;
        assert_eq!((reply.status.as_u16(), reply.header("vary")), (200, "accept"));
        found.extend(ids(&reply.json()));
        rig.accept("a b&c=\u{e9}").await;
        let Some(link) = reply.header("link").strip_prefix('<') else { break };
        let (reference, relation) = link.split_once(">; ").unwrap();
        assert_eq!(relation, "rel=\"next\"");
        assert!(reference.ends_with(reply.json()["next"].as_str().unwrap()));
        target = format!("/{reference}");
    }
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn a_list_by_state_has_only_those() {
    let rig = Rig::new().await;
    let (one, _) = (rig.accept("a").await, rig.accept("b").await);
    rig.start(one).await;
    assert_eq!(ids(&get(&rig.service(), "/?state=running").await.json()), [one.to_string()]);
    assert_eq!(
        ids(&get(&rig.service(), "/?state=&name=").await.json()).len(),
        2,
        "empty fields of a form want nothing"
    );
}

#[tokio::test]
async fn a_list_shows_each_what_is_theirs() {
    let rig = Rig::new().await;
    let ann = rig.accept_of("a", Some("ann")).await.to_string();
    let nobody = rig.accept("a").await.to_string();
    let of = |access: Access| rig.service().authorize(move |_, _| access.clone());
    assert_eq!(ids(&get(&of(Access::Owner("ann".to_owned())), "/").await.json()), [ann]);
    assert_eq!(ids(&get(&of(Access::Public), "/").await.json()), [nobody]);
    assert_eq!(ids(&get(&of(Access::All), "/").await.json()).len(), 2);
    assert_eq!(ids(&get(&of(Access::Owner("' OR 1=1 --".to_owned())), "/").await.json()).len(), 0);
}

#[tokio::test]
async fn what_cannot_be_read_is_400_and_what_is_too_much_is_less() {
    let rig = Rig::new().await;
    let service = rig.service();
    rig.accept("a").await;
    for bad in [
        "state=gone",
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=",
        "after=1",
        "name=%",
        "name=%ff",
        "name=a&name=b",
        "limit=1&limit=1",
    ] {
        assert!(get(&service, &format!("/?{bad}")).await.is_problem(400), "{bad}");
    }
    for good in ["limit=99999999999999999999999999", "limit=1000000", "foo=bar", "name=a"] {
        assert_eq!(ids(&get(&service, &format!("/?{good}")).await.json()).len(), 1, "{good}");
    }
    rig.fail_with(|| StoreError::full("disk"));
    assert!(get(&service, "/").await.is_problem(503));
}

#[tokio::test]
async fn browsers_get_the_page_and_programs_the_list_from_the_same_target() {
    let rig = Rig::new().await;
    let service = rig.service();
    let page = send(&service, "GET", "/", &[("accept", "text/html,*/*;q=0.8")]).await;
    assert_eq!((page.header("content-type"), page.header("vary")), ("text/html; charset=utf-8", "accept"));
    let list = send(&service, "GET", "/", &[("accept", "*/*")]).await;
    assert_eq!(list.header("content-type"), "application/json");
}
