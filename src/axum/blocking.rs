use std::{fmt, pin::Pin, sync::Arc};

use ::axum::{
    extract::{FromRequest, FromRequestParts, Request},
    handler::Handler,
    response::{IntoResponse, Response},
};

use super::into_response::respond;
use crate::{
    offload::Watch,
    pool::{CallOptions, PermitKind, Pool, Run},
};

/// Creates an axum handler from a blocking function `fn(T1, .., T16) -> impl IntoResponse`.
///
/// The extractors run on the event loop, so a slow request body occupies no thread of the pool. The
/// function and its return value's `into_response` run on the pool. All extractors work, including
/// `State` and a last one that consumes the body.
///
/// If the pool is full, [overloaded](crate::pool#overload) or shut down, the response is a 503 with
/// `Retry-After`, after the extractors have run. To reject before that, or to change the response,
/// use an [`OffloadLayer`](crate::OffloadLayer) around the route.
///
/// # Panics
///
/// The handler's future resumes a panic of the function.
///
/// # Cancel safety
///
/// If the client leaves before the function has started, the function never runs. Later the
/// function can check [`cancelled`](crate::cancelled).
///
/// # Compile errors
///
/// If the function is async, the compiler says so:
///
/// ```compile_fail
/// use axum::{Router, routing::get};
/// use tower_offload::{ThreadPool, axum::blocking};
///
/// // error: `{async closure}` is not a blocking handler
/// // note: for an async function, use an `OffloadLayer` around its route
/// let _: Router = Router::new().route("/", get(blocking(ThreadPool::cpu(), async || "no")));
/// ```
///
/// If an argument is not an extractor, it reports that `Blocking<..>: Handler<_, _>` is not
/// satisfied.
pub fn blocking<F, T>(pool: impl Pool, handler: F) -> Blocking<F>
where
    F: BlockingFn<T>,
{
    Blocking { pool: pool.into_shared(), handler }
}

/// A function that [`blocking`] accepts: `fn(T1, .., T16) -> impl IntoResponse`. `T` is the tuple
/// of its arguments.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a blocking handler",
    label = "not a blocking function that returns a response",
    note = "a blocking handler is a `fn(T1, .., T16) -> impl IntoResponse` that is not async",
    note = "for an async function, use an `OffloadLayer` around its route"
)]
pub trait BlockingFn<T> {}

/// An axum handler that runs a blocking function on a pool. Created by [`blocking`].
#[derive(Clone)]
pub struct Blocking<F> {
    pool: Arc<dyn Pool>,
    handler: F,
}

impl<F> Blocking<F> {
    async fn run(
        pool: Arc<dyn Pool>,
        watch: Option<Watch<Response>>,
        work: impl FnOnce() -> Response + Send + 'static,
    ) -> Response {
        let watched = move || {
            let response = work();
            if let Some(watch) = watch {
                watch.respond(&response);
            }
            response
        };
        match Run::new(pool.clone(), CallOptions::new(), PermitKind::Limited, watched).await {
            Ok(response) => response,
            Err(error) => respond(error, pool.expected_wait()),
        }
    }
}

impl<F> fmt::Debug for Blocking<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking").field("pool", &self.pool).field("handler", &std::any::type_name::<F>()).finish()
    }
}

impl<F, Res> BlockingFn<()> for F
where
    F: FnOnce() -> Res,
    Res: IntoResponse,
{
}

impl<F, Res, S> Handler<((),), S> for Blocking<F>
where
    F: FnOnce() -> Res + Clone + Send + Sync + 'static,
    Res: IntoResponse,
{
    type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: Request, _: S) -> Self::Future {
        let Self { pool, handler } = self;
        Box::pin(Self::run(pool, Watch::of(&request), move || handler().into_response()))
    }
}

/// Implements both traits for functions with one to sixteen extractors, like axum's own macro for
/// async functions.
macro_rules! handler {
    ([$($part:ident),*], $last:ident) => {
        impl<F, Res, $($part,)* $last> BlockingFn<($($part,)* $last,)> for F
        where
            F: FnOnce($($part,)* $last) -> Res,
            Res: IntoResponse,
        {
        }

        #[allow(non_snake_case, unused_mut)]
        impl<F, Res, S, M, $($part,)* $last> Handler<(M, $($part,)* $last,), S> for Blocking<F>
        where
            F: FnOnce($($part,)* $last) -> Res + Clone + Send + Sync + 'static,
            Res: IntoResponse,
            S: Send + Sync + 'static,
            $($part: FromRequestParts<S> + Send + 'static,)*
            $last: FromRequest<S, M> + Send + 'static,
        {
            type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

            fn call(self, request: Request, state: S) -> Self::Future {
                let Self { pool, handler } = self;
                Box::pin(async move {
                    let watch = Watch::of(&request);
                    let (mut parts, body) = request.into_parts();
                    $(
                        let $part = match $part::from_request_parts(&mut parts, &state).await {
                            Ok(value) => value,
                            Err(rejection) => return rejection.into_response(),
                        };
                    )*
                    let request = Request::from_parts(parts, body);
                    let $last = match $last::from_request(request, &state).await {
                        Ok(value) => value,
                        Err(rejection) => return rejection.into_response(),
                    };
                    Self::run(pool, watch, move || handler($($part,)* $last).into_response()).await
                })
            }
        }
    };
}

handler!([], T1);
handler!([T1], T2);
handler!([T1, T2], T3);
handler!([T1, T2, T3], T4);
handler!([T1, T2, T3, T4], T5);
handler!([T1, T2, T3, T4, T5], T6);
handler!([T1, T2, T3, T4, T5, T6], T7);
handler!([T1, T2, T3, T4, T5, T6, T7], T8);
handler!([T1, T2, T3, T4, T5, T6, T7, T8], T9);
handler!([T1, T2, T3, T4, T5, T6, T7, T8, T9], T10);
handler!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10], T11);
handler!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11], T12);
handler!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12], T13);
handler!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13], T14);
handler!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13, T14], T15);
handler!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13, T14, T15], T16);
