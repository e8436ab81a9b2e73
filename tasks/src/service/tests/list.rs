use super::controlled::{Controlled, get, send};
use crate::{StoreError, service::Access};

fn ids(json: &serde_json::Value) -> Vec<String> {
    json["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn links_lead_to_every_task_once_while_others_are_added() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    let mut wanted = Vec::new();
    for _ in 0..7 {
        wanted.push(tasks.accept("a b&c=\u{e9}").await.to_string());
        tasks.accept("other").await;
    }
    wanted.sort_by(|one, other| other.cmp(one));
    let (mut target, mut found) =
        ("/?state=queued,running&state=queued&name=a+b%26c%3D%C3%A9&limit=3".to_owned(), Vec::new());
    loop {
        let reply = get(&service, &target).await;
        assert_eq!((reply.status.as_u16(), reply.header("vary")), (200, "accept"));
        found.extend(ids(&reply.json()));
        tasks.accept("a b&c=\u{e9}").await;
        let Some(link) = reply.header("link").strip_prefix('<') else { break };
        let (reference, relation) = link.split_once(">; ").unwrap();
        assert_eq!(relation, "rel=\"next\"");
        assert!(reference.ends_with(reply.json()["next"].as_str().unwrap()));
        target = format!("/{reference}");
    }
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn list_is_filtered_by_state() {
    let tasks = Controlled::new().await;
    let (one, _) = (tasks.accept("a").await, tasks.accept("b").await);
    tasks.start(one).await;
    assert_eq!(ids(&get(&tasks.service(), "/?state=running").await.json()), [one.to_string()]);
    assert_eq!(ids(&get(&tasks.service(), "/?state=&name=").await.json()).len(), 2, "empty parameters do not filter");
}

#[tokio::test]
async fn list_contains_only_permitted_tasks() {
    let tasks = Controlled::new().await;
    let ann = tasks.accept_of("a", Some("ann")).await.to_string();
    let public = tasks.accept("a").await.to_string();
    let service = |access: Access| tasks.service().authorize(move |_, _| access.clone());
    assert_eq!(ids(&get(&service(Access::Owner("ann".to_owned())), "/").await.json()), [ann]);
    assert_eq!(ids(&get(&service(Access::Public), "/").await.json()), [public]);
    assert_eq!(ids(&get(&service(Access::All), "/").await.json()).len(), 2);
    assert_eq!(ids(&get(&service(Access::Owner("' OR 1=1 --".to_owned())), "/").await.json()).len(), 0);
}

#[tokio::test]
async fn invalid_parameters_are_400_and_large_limits_are_reduced() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    tasks.accept("a").await;
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
    tasks.fail_with(|| StoreError::full("disk"));
    assert!(get(&service, "/").await.is_problem(503));
}

#[tokio::test]
#[cfg(feature = "page")]
async fn accept_header_selects_page_or_list() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    let page = send(&service, "GET", "/", &[("accept", "text/html,*/*;q=0.8")]).await;
    assert_eq!((page.header("content-type"), page.header("vary")), ("text/html; charset=utf-8", "accept"));
    let list = send(&service, "GET", "/", &[("accept", "*/*")]).await;
    assert_eq!(list.header("content-type"), "application/json");
}
