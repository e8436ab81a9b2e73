//! The `Location` of an accepted task leads to its status, however the service is mounted.

use axum::{Router, extract::State, http::Request, routing::post};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tower::{Service, ServiceExt};
use tower_offload::Background;
use tower_offload_tasks::{AcceptError, Accepted, MemoryStore, Tasks};

use super::{
    http::{Client, serve},
    support::{background, done, in_memory},
};

async fn report(State((tasks, background)): State<(Tasks, Background)>) -> Result<Accepted, AcceptError> {
    tasks.track("report").spawn_blocking(&background, |_| done()).await
}

fn at(base_path: &str) -> Tasks {
    Tasks::builder(MemoryStore::new()).base_path(base_path).build()
}

/// Requests a task and returns the path of its `Location`, which must lead to its status, its
/// events and, one level above, to the OpenAPI document.
async fn location(client: &Client) -> String {
    let accepted = client.send("POST", "/reports", &[]).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    let location = accepted.header("location").to_owned();
    let id = accepted.json()["id"].as_str().unwrap().to_owned();
    assert!(location.ends_with(&id), "{location}");
    let status = client.get(&location).await;
    assert!(status.status == 200 && status.json()["id"] == *id, "{location}: {}", status.text);
    let events = client.get(&format!("{location}/events")).await;
    assert!(events.text.contains("event: finished"), "{location}: {}", events.text);
    let document = client.get(&location.replace(&id, "openapi.json")).await;
    assert!(document.text.contains("openapi"), "{location}: {}", document.text);
    location.strip_suffix(&id).unwrap().to_owned()
}

async fn location_in(
    tasks: Tasks,
    mount: impl FnOnce(Router<(Tasks, Background)>, &Tasks) -> Router<(Tasks, Background)>,
) -> String {
    let app = mount(Router::new().route("/reports", post(report)), &tasks);
    location(&serve(app.with_state((tasks, background()))).await).await
}

#[tokio::test]
async fn location_leads_to_a_service_nested_at_the_default_path() {
    assert_eq!(location_in(in_memory(), |app, tasks| app.nest_service("/tasks", tasks.service())).await, "/tasks/");
}

#[tokio::test]
async fn location_leads_to_a_service_nested_at_its_base_path() {
    let nested = location_in(at("/jobs/status"), |app, tasks| app.nest_service("/jobs/status", tasks.service()));
    assert_eq!(nested.await, "/jobs/status/");
}

#[tokio::test]
async fn location_leads_to_a_service_in_nested_routers() {
    let nested = location_in(at("/api/v1/tasks"), |app, tasks| {
        let inner = Router::new().nest_service("/tasks", tasks.service());
        app.nest("/api", Router::new().nest("/v1", inner))
    });
    assert_eq!(nested.await, "/api/v1/tasks/");
}

#[tokio::test]
async fn location_leads_to_a_fallback_service() {
    for (base_path, expected) in [("/tasks", "/tasks/"), ("", "/"), ("/", "/"), ("/a/b", "/a/b/")] {
        let found = location_in(at(base_path), |app, tasks| app.fallback_service(tasks.service())).await;
        assert_eq!(found, expected);
    }
    let nested =
        location_in(at("/api"), |app, tasks| app.nest("/api", Router::new().fallback_service(tasks.service())));
    assert_eq!(nested.await, "/api/");
}

#[tokio::test]
async fn location_leads_to_a_service_on_a_route_with_a_wildcard() {
    let routed = location_in(in_memory(), |app, tasks| app.route_service("/tasks/{*path}", tasks.service()));
    assert_eq!(routed.await, "/tasks/");
}

/// Serves a tower service with hyper.
async fn serve_with_hyper<S>(service: S) -> Client
where
    S: Service<Request<axum::body::Body>, Response = axum::response::Response, Error = std::convert::Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::of(listener.local_addr().unwrap());
    let service = service.map_request(|request: Request<hyper::body::Incoming>| request.map(axum::body::Body::new));
    let service = TowerToHyperService::new(service);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service.clone();
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    client
}

/// Passes every request but `POST /reports` to the status service, like a program without a router.
fn by_hand(tasks: Tasks) -> axum::routing::RouterIntoService<axum::body::Body> {
    let service = tasks.service();
    Router::new()
        .route("/reports", post(report))
        .fallback(move |request: Request<axum::body::Body>| service.clone().oneshot(request))
        .with_state((tasks, background()))
        .into_service()
}

#[tokio::test]
async fn location_leads_to_a_service_without_a_router() {
    for (base_path, expected) in [("/tasks", "/tasks/"), ("", "/")] {
        assert_eq!(location(&serve_with_hyper(by_hand(at(base_path))).await).await, expected);
    }
}

/// The proxy removes `/api` from each request.
#[tokio::test]
async fn location_leads_through_a_proxy_that_removes_a_prefix() {
    let tasks = at("/api/tasks");
    let nested = Router::new().route("/reports", post(report)).nest_service("/tasks", tasks.service());
    let nested = nested.with_state((tasks, background())).into_service();
    for (app, expected) in [(nested, "/api/tasks/"), (by_hand(at("/api")), "/api/")] {
        let proxy = app.map_request(|mut request: Request<axum::body::Body>| {
            if let Some(rest) = request.uri().path().strip_prefix("/api") {
                *request.uri_mut() = rest.parse().unwrap();
            }
            request
        });
        assert_eq!(location(&serve_with_hyper(proxy).await).await, expected);
    }
}
