//! Blocking functions as handlers: `tower_offload::axum::blocking`.

use std::{any::Any, time::Duration};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{MatchedPath, Multipart, OriginalUri, Path, Query, RawPathParams, RawQuery, Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, Version, header::CONTENT_TYPE, request::Parts},
    response::IntoResponse,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tower_http::catch_panic::CatchPanicLayer;
use tower_offload::{CallError, OffloadLayer, ThreadPool, axum::blocking, cancelled, pool::Pool};

use crate::support::{
    self, FullPool, GET, Http1, Latch, Raw, Spy, is_pool_thread, one_thread, request, send, serve, thread_name, within,
};

fn pool() -> ThreadPool {
    support::pool(2)
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
struct User {
    name: String,
    age: u8,
}

fn alice() -> User {
    User { name: "alice".to_owned(), age: 30 }
}

#[derive(Clone)]
struct Pepper(&'static str);

fn json(path: &str, body: impl Into<Body>) -> http::Request<Body> {
    let mut request = request(Method::POST, path, body);
    request.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    request
}

#[tokio::test]
async fn no_extractor() {
    within(async {
        let address = serve(Router::new().route("/", get(blocking(pool(), thread_name)))).await;
        assert!(is_pool_thread(support::get(address, "/").await.text()));
    })
    .await;
}

#[tokio::test]
async fn body_extractor() {
    fn shout(body: String) -> String {
        assert!(is_pool_thread(&thread_name()));
        body.to_uppercase()
    }
    within(async {
        let address = serve(Router::new().route("/", post(blocking(pool(), shout)))).await;
        send(address, request(Method::POST, "/", "hello")).await.assert_ok("HELLO");
    })
    .await;
}

#[tokio::test]
async fn head_extractor() {
    within(async {
        let host = |headers: HeaderMap| headers["host"].to_str().unwrap().to_owned();
        let address = serve(Router::new().route("/", get(blocking(pool(), host)))).await;
        support::get(address, "/").await.assert_ok("test");
    })
    .await;
}

#[tokio::test]
async fn request_extractor() {
    within(async {
        let describe = |request: Request| format!("{} {}", request.method(), request.uri());
        let address = serve(Router::new().route("/{any}", get(blocking(pool(), describe)))).await;
        support::get(address, "/path?query").await.assert_ok("GET /path?query");
    })
    .await;
}

#[tokio::test]
async fn two_extractors() {
    fn rename(Path(name): Path<String>, Json(user): Json<User>) -> Json<User> {
        Json(User { name, ..user })
    }
    within(async {
        let address = serve(Router::new().route("/{name}", post(blocking(pool(), rename)))).await;
        let response = send(address, json("/bob", serde_json::to_vec(&alice()).unwrap())).await;
        assert_eq!(serde_json::from_slice::<User>(&response.body).unwrap(), User { name: "bob".to_owned(), age: 30 });
        assert_eq!(response.header("content-type"), "application/json");
    })
    .await;
}

#[allow(clippy::too_many_arguments)]
fn sixteen(
    State(Pepper(pepper)): State<Pepper>,
    Path(name): Path<String>,
    Query(query): Query<User>,
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    OriginalUri(original): OriginalUri,
    matched: MatchedPath,
    RawQuery(raw): RawQuery,
    Extension(number): Extension<u8>,
    Extension(text): Extension<&'static str>,
    params: RawPathParams,
    parts: Parts,
    missing: Option<Extension<u64>>,
    Json(user): Json<User>,
) -> String {
    assert!(is_pool_thread(&thread_name()));
    assert_eq!((query, user), (alice(), alice()));
    assert_eq!((uri.path(), original.path(), matched.as_str()), ("/x", "/api/x", "/api/{name}"));
    assert_eq!((version, &parts.method, missing.is_none()), (Version::HTTP_11, &method, true));
    assert_eq!(headers["host"], "test");
    assert_eq!(raw.as_deref(), Some("name=alice&age=30"));
    assert_eq!(params.iter().collect::<Vec<_>>(), [("name", "x")]);
    format!("{pepper} {name} {method} {number} {text}")
}

#[tokio::test]
async fn sixteen_extractors() {
    within(async {
        let api = Router::new().route("/{name}", post(blocking(pool(), sixteen)));
        let router =
            Router::new().nest("/api", api).layer(Extension(7_u8)).layer(Extension("seven")).with_state(Pepper("salt"));
        let request = json("/api/x?name=alice&age=30", serde_json::to_vec(&alice()).unwrap());
        send(serve(router).await, request).await.assert_ok("salt x POST 7 seven");
    })
    .await;
}

/// The function reads the form with `block_on`, because the runtime is entered on the pool.
#[tokio::test]
async fn multipart() {
    fn fields(mut form: Multipart) -> Result<String, axum::extract::multipart::MultipartError> {
        assert!(is_pool_thread(&thread_name()));
        tokio::runtime::Handle::current().block_on(async {
            let mut fields = Vec::new();
            while let Some(field) = form.next_field().await? {
                fields.push(format!("{}={}", field.name().unwrap_or("").to_owned(), field.text().await?));
            }
            Ok(fields.join(" "))
        })
    }
    within(async {
        let address = serve(Router::new().route("/", post(blocking(pool(), fields)))).await;
        let part = |name: &str, value: &str| {
            format!("--edge\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let mut form = request(Method::POST, "/", format!("{}{}--edge--\r\n", part("one", "1"), part("two", "zwei")));
        form.headers_mut().insert(CONTENT_TYPE, "multipart/form-data; boundary=edge".parse().unwrap());
        send(address, form).await.assert_ok("one=1 two=zwei");
        let plain = send(address, request(Method::POST, "/", "not a form")).await;
        assert_eq!(plain.status, StatusCode::BAD_REQUEST);
    })
    .await;
}

#[tokio::test]
async fn result_is_a_response() {
    fn parse(body: String) -> Result<String, (StatusCode, String)> {
        let number: i32 = body.parse().map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}")))?;
        Ok((number + 1).to_string())
    }
    within(async {
        let mut connection = Http1::connect(serve(Router::new().route("/", post(blocking(pool(), parse)))).await).await;
        connection.send(request(Method::POST, "/", "41")).await.assert_ok("42");
        let response = connection.send(request(Method::POST, "/", "x")).await;
        assert_eq!((response.status, response.text()), (StatusCode::BAD_REQUEST, "invalid digit found in string"));
    })
    .await;
}

#[tokio::test]
async fn into_response_runs_on_the_pool() {
    struct Lazy;
    impl IntoResponse for Lazy {
        fn into_response(self) -> axum::response::Response {
            thread_name().into_response()
        }
    }
    within(async {
        let address = serve(Router::new().route("/", get(blocking(pool(), || Lazy)))).await;
        assert!(is_pool_thread(support::get(address, "/").await.text()));
    })
    .await;
}

/// The function is not called.
#[tokio::test]
async fn extractor_rejections_equal_those_of_async_handlers() {
    within(async {
        let pool = pool();
        let sync = |_: Query<User>, _: Json<User>| "called";
        let r#async = async |_: Query<User>, _: Json<User>| "called";
        let router = Router::new().route("/sync", post(blocking(pool.clone(), sync))).route("/async", post(r#async));
        let address = serve(router).await;
        let good = serde_json::to_string(&alice()).unwrap();
        let cases: [(&str, &str, &str, u16); 6] = [
            ("?name=a&age=1", "application/json", "{", 400),
            ("?name=a&age=x", "application/json", &good, 400),
            ("", "application/json", &good, 400),
            ("?name=a&age=1", "text/plain", &good, 415),
            ("?name=a&age=1", "application/json", r#"{"name": "alice"}"#, 422),
            ("?name=a&age=1", "application/json", &"x".repeat(3 << 20), 413),
        ];
        for (query, content_type, body, status) in cases {
            let mut responses = Vec::new();
            for path in ["/sync", "/async"] {
                let mut request = request(Method::POST, &format!("{path}{query}"), body.to_owned());
                request.headers_mut().insert(CONTENT_TYPE, content_type.parse().unwrap());
                let response = send(address, request).await;
                responses.push((response.status.as_u16(), response.body));
            }
            assert_eq!(responses[0].0, status);
            assert_eq!(responses[0], responses[1]);
        }
        assert_eq!(support::get(address, "/sync").await.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(pool.stats().started, 0);
    })
    .await;
}

#[tokio::test]
async fn full_pool_answers_503() {
    within(async {
        let full = FullPool::new().await;
        let address = serve(Router::new().route("/", get(blocking(full.pool.clone(), || "ok")))).await;
        support::get(address, "/").await.assert_unavailable();
        assert_eq!(full.pool.stats().rejected, 1);
        full.release().await;
        support::get(address, "/").await.assert_ok("ok");
    })
    .await;
}

#[tokio::test]
async fn pool_after_shutdown_answers_503() {
    within(async {
        let pool = pool();
        let address = serve(Router::new().route("/", get(blocking(pool.clone(), || "ok")))).await;
        assert!(pool.shutdown(Duration::from_secs(5)).await.is_empty());
        support::get(address, "/").await.assert_unavailable();
    })
    .await;
}

#[tokio::test]
async fn panic_resumes_in_the_caller() {
    fn panics(body: String) -> &'static str {
        panic!("it was {body}")
    }
    within(async {
        let respond = |payload: Box<dyn Any + Send>| {
            (StatusCode::INTERNAL_SERVER_ERROR, payload.downcast_ref::<String>().cloned().unwrap_or_default())
                .into_response()
        };
        let pool = one_thread(1);
        let routes = || Router::new().route("/", post(blocking(pool.clone(), panics)));
        let router = routes().layer(CatchPanicLayer::custom(respond)).nest("/bare", routes());
        let address = serve(router).await;
        let caught = send(address, request(Method::POST, "/", "me")).await;
        assert_eq!((caught.status, caught.text()), (StatusCode::INTERNAL_SERVER_ERROR, "it was me"));
        // Without a layer that catches it, the panic closes the connection. Server and thread
        // survive.
        Http1::connect(address).await.try_send(request(Method::POST, "/bare", "me")).await.unwrap_err();
        assert_eq!(send(address, request(Method::POST, "/", "again")).await.text(), "it was again");
        assert_eq!((pool.stats().panicked, pool.threads()), (3, 1));
    })
    .await;
}

#[tokio::test]
async fn hang_up_cancels_the_running_function() {
    within(async {
        let (latch, spy, (results, result)) = (Latch::new(), Spy::new(), std::sync::mpsc::channel());
        let held = latch.clone();
        let function = move || {
            held.block();
            results.send(cancelled()).unwrap();
        };
        let pool = one_thread(1);
        let address = serve(spy.around(Router::new().route("/", get(blocking(pool.clone(), function))))).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.dropped().await;
        latch.open();
        pool.run(|| ()).await.unwrap();
        assert_eq!(result.try_recv(), Ok(true));
    })
    .await;
}

#[tokio::test]
async fn queued_function_never_runs_after_a_hang_up() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), one_thread(2));
        let (runs, ran) = std::sync::mpsc::channel();
        let held = pool.run({
            let latch = latch.clone();
            move || latch.block()
        });
        latch.reached().await;
        let function = move || runs.send(()).unwrap();
        let address = serve(spy.around(Router::new().route("/", get(blocking(pool.clone(), function))))).await;
        let client = Raw::with(address, GET).await;
        spy.pending(1).await;
        assert_eq!(pool.stats().queued, 1);
        drop(client);
        spy.dropped().await;
        latch.open();
        held.await.unwrap();
        pool.run(|| ()).await.unwrap(); // it was queued behind the cancelled call
        assert!(ran.try_recv().is_err());
    })
    .await;
}

/// A handler returns the error of `Pool::run`.
#[tokio::test]
async fn call_error_is_a_response() {
    within(async {
        let full = FullPool::new().await;
        let pool = full.pool.clone();
        let handler = async move |body: Bytes| -> Result<String, CallError> {
            pool.run(move || format!("{} bytes", body.len())).await
        };
        let address = serve(Router::new().route("/", post(handler))).await;
        send(address, request(Method::POST, "/", "four")).await.assert_unavailable();
        full.release().await;
        send(address, request(Method::POST, "/", "four")).await.assert_ok("4 bytes");
        assert_eq!(CallError::Panicked.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
    })
    .await;
}

/// The two nested calls do not wait for each other.
#[tokio::test]
async fn works_behind_a_layer_on_the_same_pool() {
    within(async {
        let pool = one_thread(8);
        let router = Router::new().route("/", get(blocking(pool.clone(), thread_name)));
        let address = serve(router.layer(OffloadLayer::new(pool).max_in_flight(1))).await;
        for _ in 0..3 {
            assert!(is_pool_thread(support::get(address, "/").await.text()));
        }
    })
    .await;
}

#[tokio::test]
async fn works_as_fallback_with_state() {
    within(async {
        let state = |State(Pepper(pepper)): State<Pepper>| pepper;
        let router = Router::new().fallback(blocking(pool(), state)).with_state(Pepper("salt"));
        support::get(serve(router).await, "/any").await.assert_ok("salt");
    })
    .await;
}
