//! Shapes of services, layers and handlers that must compile.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    extract::{FromRef, Path, Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use http::StatusCode;
use http_body_util::BodyExt;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, service_fn,
    util::{BoxCloneService, BoxCloneSyncService, Either, option_layer},
};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background, OffloadLayer, Pool, ThreadPool,
    axum::blocking,
    offload::{HttpReject, RejectWithError},
};

fn request(path: &str) -> Request {
    Request::builder().uri(path).body(axum::body::Body::empty()).unwrap()
}

fn leaked() -> &'static str {
    std::env::args().next().unwrap().leak()
}

/// Sends a request from a spawned task, which must be `Send` and `'static`.
async fn spawned<S>(service: S, path: &str) -> (StatusCode, String)
where
    S: Service<Request, Response = Response, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    let request = request(path);
    let response = tokio::spawn(async move { service.oneshot(request).await }).await.unwrap().unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn is_hello(
    service: impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Send + 'static,
) {
    assert_eq!(spawned(service, "/").await, (StatusCode::OK, "hello".to_owned()));
}

/// A function that is generic over the service and the pool.
fn offloaded<S>(
    service: S,
    pool: impl Pool,
) -> impl Service<Request, Response = Response, Error = S::Error, Future: Send> + Clone
where
    S: Service<Request, Response = Response> + Clone + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
{
    OffloadLayer::new(pool).layer(service)
}

#[derive(Clone)]
struct Layers {
    offload: OffloadLayer<HttpReject>,
    after: AfterResponseLayer,
}

#[tokio::test]
async fn boxed_services_inside_and_outside() {
    let hello = service_fn(async |_: Request| Ok::<_, Infallible>("hello".into_response()));
    let layer = || OffloadLayer::new(ThreadPool::cpu());
    is_hello(layer().layer(BoxCloneService::new(hello))).await;
    is_hello(layer().layer(BoxCloneSyncService::new(hello))).await;
    is_hello(BoxCloneService::new(layer().layer(hello))).await;
    is_hello(BoxCloneSyncService::new(layer().layer(hello))).await;
}

#[tokio::test]
async fn generic_functions_and_shared_pools() {
    let hello = Router::new().route("/", get("hello"));
    is_hello(offloaded(hello.clone(), ThreadPool::cpu())).await;
    let shared: Arc<dyn Pool> = Arc::new(ThreadPool::cpu());
    is_hello(offloaded(hello.clone(), shared.clone())).await;
    is_hello(offloaded(offloaded(hello, shared), ThreadPool::cpu())).await;
}

#[tokio::test]
async fn optional_layers_and_either_of_two() {
    for is_offloaded in [false, true] {
        let layer = is_offloaded.then(|| OffloadLayer::new(ThreadPool::cpu()));
        is_hello(Router::new().route("/", get("hello")).layer(option_layer(layer.clone()))).await;
        let hello = Router::new().route("/", get("hello"));
        let either = match layer {
            Some(layer) => Either::Left(layer.layer(hello)),
            None => Either::Right(hello),
        };
        is_hello(either).await;
    }
}

#[tokio::test]
async fn layers_in_a_struct_on_a_router_with_any_state() {
    fn routes<S: Clone + Send + Sync + 'static>(layers: Layers) -> Router<S>
    where
        &'static str: FromRef<S>,
    {
        let hello = async |State(text): State<&'static str>, _: AfterResponse| text;
        Router::new().route("/", get(hello)).route_layer(layers.offload).layer(layers.after)
    }
    let layers =
        Layers { offload: OffloadLayer::new(ThreadPool::cpu()), after: AfterResponseLayer::new(Background::default()) };
    is_hello(Router::new().merge(routes(layers.clone())).with_state("hello")).await;
    is_hello(Router::new().fallback_service(routes(layers).with_state("hello"))).await;
}

#[tokio::test]
async fn middleware_functions_that_capture_inside_and_outside() {
    let prefix = leaked();
    let check = move |State(state): State<Arc<str>>, request: Request, next: Next| async move {
        if request.uri().path().starts_with(prefix) {
            state.to_string().into_response()
        } else {
            next.run(request).await
        }
    };
    let state = Arc::<str>::from("state");
    let app = Router::new()
        .route("/", get("hello"))
        .layer(middleware::from_fn_with_state(state.clone(), check))
        .layer(OffloadLayer::new(ThreadPool::cpu()).filter(move |head| !head.uri().path().starts_with(prefix)))
        .layer(middleware::from_fn_with_state(state, check));
    is_hello(app).await;
}

#[tokio::test]
async fn layers_on_one_handler_and_blocking_closures_that_capture() {
    let text = leaked();
    let pool = ThreadPool::cpu();
    let hello = async |_: Option<AfterResponse>| "hello";
    let app = Router::new().route("/", get(hello.layer(OffloadLayer::new(pool.clone())))).route(
        "/{n}",
        any(blocking(pool.clone(), move |Path(n): Path<usize>| -> Result<String, StatusCode> {
            text.get(..n.min(1)).map(|_| n.to_string()).ok_or(StatusCode::NOT_FOUND)
        })),
    );
    assert_eq!(spawned(app.clone(), "/7").await, (StatusCode::OK, "7".to_owned()));
    is_hello(app).await;
}

#[tokio::test]
async fn service_builder_with_errors_of_any_kind() {
    let text = leaked();
    let service = ServiceBuilder::new()
        .map_err(|error: tower::BoxError| error.to_string())
        .layer(OffloadLayer::new(ThreadPool::cpu()).reject(RejectWithError))
        .check_clone()
        .service_fn(move |more: String| async move { if more.is_empty() { Err("empty") } else { Ok(more + text) } });
    let replies = [String::new(), "x".to_owned()].map(|text| tokio::spawn(service.clone().oneshot(text)));
    let [empty, full] = replies;
    assert_eq!(empty.await.unwrap(), Err("empty".to_owned()));
    assert_eq!(full.await.unwrap(), Ok("x".to_owned() + text));
}
