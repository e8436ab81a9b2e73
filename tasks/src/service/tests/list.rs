use futures_util::{FutureExt, future::join_all};

use super::controlled::{Controlled, get, send};
use crate::{Failure, Json, StoreError, record::Ending, service::Access};

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
async fn list_for_the_public_does_not_name_owned_tasks() {
    let tasks = Controlled::new().await;
    let service = tasks.service().authorize(|_, _| Access::Public);
    let (mut public, mut owned) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        public.push(tasks.accept("a").await.to_string());
        owned.push(tasks.accept_of("a", Some("ann")).await.to_string());
    }
    public.reverse();
    for limit in 1..=4 {
        let (mut target, mut found) = (format!("/?limit={limit}"), Vec::new());
        loop {
            let reply = get(&service, &target).await;
            let everything = format!("{} {}", reply.text, reply.header("link"));
            assert!(owned.iter().all(|id| !everything.contains(id)), "limit {limit}: {everything}");
            let page = ids(&reply.json());
            let Some(next) = reply.json()["next"].as_str().map(str::to_owned) else { break found.extend(page) };
            assert_eq!(page.len(), limit, "a page is full unless it is the last one");
            found.extend(page);
            target = format!("/?limit={limit}&after={next}");
        }
        assert_eq!(found, public);
    }
}

#[tokio::test]
async fn list_omits_results_and_details_of_failures() {
    let tasks = Controlled::new().await;
    let (done, failed) = (tasks.accept("a").await, tasks.accept("a").await);
    for id in [done, failed] {
        tasks.start(id).await;
    }
    tasks.finish(done, Ending::Succeeded(Json::new(&"the result").unwrap())).await;
    tasks.finish(failed, Ending::Failed(Failure::new("io", "the message").detail(&"the detail"))).await;
    let reply = get(&tasks.service(), "/").await;
    assert_eq!(ids(&reply.json()), [failed.to_string(), done.to_string()]);
    assert!(reply.text.contains("the message"), "{}", reply.text);
    assert!(!reply.text.contains("the result") && !reply.text.contains("the detail"), "{}", reply.text);
    assert!(get(&tasks.service(), &format!("/{done}")).await.text.contains("the result"));
    assert!(get(&tasks.service(), &format!("/{failed}")).await.text.contains("the detail"));
}

/// Each control character in a message takes six bytes of JSON.
#[tokio::test]
async fn list_response_has_at_most_a_mebibyte_and_a_next_page() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    let mut wanted = Vec::new();
    for _ in 0..60 {
        let id = tasks.accept("a").await;
        tasks.start(id).await;
        tasks.finish(id, Ending::Failed(Failure::new("io", "\u{1}".repeat(8 * 1024)))).await;
        wanted.insert(0, id.to_string());
    }
    let (mut target, mut found) = ("/?limit=1000".to_owned(), Vec::new());
    loop {
        let reply = get(&service, &target).await;
        assert!(reply.text.len() <= 1024 * 1024 + 1024, "{} bytes", reply.text.len());
        assert!(!ids(&reply.json()).is_empty());
        found.extend(ids(&reply.json()));
        let Some(next) = reply.json()["next"].as_str().map(str::to_owned) else { break };
        assert!(reply.header("link").contains(&next));
        target = format!("/?limit=1000&after={next}");
    }
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn lists_that_are_read_at_a_time_are_limited() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    tasks.hold_lists();
    let mut reading: Vec<_> = (0..16).map(|_| Box::pin(get(&service, "/"))).collect();
    for request in &mut reading {
        assert!(request.as_mut().now_or_never().is_none());
    }
    for _ in 0..100 {
        let reply = get(&service, "/").await;
        assert_eq!((reply.is_problem(503), reply.header("retry-after")), (true, "1"));
    }
    tasks.release_lists();
    assert!(join_all(reading).await.iter().all(|reply| reply.status == 200));
    assert_eq!(get(&service, "/").await.status, 200, "permits were released");
}

#[tokio::test]
async fn invalid_state_is_answered_with_the_valid_ones() {
    let service = Controlled::new().await.service();
    for query in ["state=done", "state=queued,Running", "state=%20queued"] {
        let reply = get(&service, &format!("/?{query}")).await;
        assert!(reply.is_problem(400), "{query}");
        for state in crate::TaskState::ALL {
            assert!(reply.json()["detail"].as_str().unwrap().contains(state.as_str()), "{query}: {}", reply.text);
        }
    }
}

#[tokio::test]
async fn invalid_parameters_are_400_and_large_limits_are_reduced() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    tasks.accept("a").await;
    for bad in [
        "state=gone",
        "state=,",
        "state=queued&state=,,",
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
