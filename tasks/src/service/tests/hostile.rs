use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use proptest::prelude::*;
use tower::ServiceExt;

use super::controlled::{Controlled, get, send};

#[tokio::test]
async fn malformed_ids_are_unknown() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    let id = tasks.accept("report").await.to_string();
    let encoded: String = id.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for bad in [
        "0".repeat(60_000),
        "%".to_owned(),
        "%ff%fe".to_owned(),
        "%00".to_owned(),
        "..".to_owned(),
        "'%20OR%201=1--".to_owned(),
        "%3Cscript%3E".to_owned(),
        id.to_uppercase(),
        format!("{id}0"),
        format!("{id}/"),
        format!("/{id}"),
        format!("{id}/events/"),
        format!("{id}//events"),
        format!("{id}/Events"),
        encoded,
    ] {
        for method in ["GET", "DELETE"] {
            let reply = send(&service, method, &format!("/{bad}"), &[]).await;
            assert!(reply.status == 404 || reply.status == 405, "{method} {bad:.80}: {}", reply.status);
            assert!(!reply.text.contains("script"), "the response must not contain the target");
        }
    }
}

#[tokio::test]
async fn request_body_is_ignored() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let request = Request::get(format!("/{id}")).body(Full::new(Bytes::from(vec![0xff; 1 << 20]))).unwrap();
    assert_eq!(tasks.service().oneshot(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn target_without_a_path_gets_a_response() {
    let tasks = Controlled::new().await;
    for target in ["*", "http://host", "http://host/?limit=1"] {
        assert!(get(&tasks.service(), target).await.status.as_u16() < 500, "{target}");
    }
}

proptest! {
    #[test]
    fn no_request_causes_a_server_error(
        method in "GET|HEAD|DELETE|POST|[A-Z]{1,9}", path in "(/[!-~&&[^?#/\\\\^`{|}\"<>]]{0,40}){1,4}",
        query in "[!-~&&[^#\\\\^`{|}\"<>]]{0,40}", field in "[ -~]{0,40}"
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let Ok(target) = format!("{path}?{query}").parse::<http::Uri>() else { return Ok(()) };
        let status = runtime.block_on(async {
            let service = Controlled::new().await.service();
            let headers = [("accept", field.as_str()), ("prefer", &field), ("last-event-id", &field)];
            send(&service, &method, &target.to_string(), &headers).await.status
        });
        prop_assert!(status.as_u16() < 500, "{}", status);
    }
}
