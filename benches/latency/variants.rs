//! The ways to run a job that are compared, as data.

use axum::{
    Router,
    error_handling::HandleErrorLayer,
    http::StatusCode,
    routing::{MethodRouter, get},
};
use tower::ServiceBuilder;
use tower_offload::{
    OffloadLayer, ThreadPool,
    offload::ProblemJson,
    pool::{Codel, Pool, Rayon, TokioBlocking},
};
use tower_resilience_executor::{BlockingExecutor, ExecutorError, ExecutorLayer};

use crate::latency::{BoxError, work::Work};

/// One way to run a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// Whether tokio's blocking threads are as few as the cores, instead of tokio's default of 512.
    pub(crate) capped: bool,
    /// In the picture, the first ones from a palette that is told apart without red and green (Okabe and Ito).
    pub(crate) colour: [u8; 3],
    /// `/job` in this way. Called inside the server's runtime.
    pub(crate) job: fn(Work) -> Router,
}

const VARIANTS: &[Variant] = &[
    Variant { name: "inline", capped: false, colour: [0, 0, 0], job: inline },
    Variant { name: "spawn_blocking", capped: false, colour: [213, 94, 0], job: spawn_blocking },
    Variant { name: "spawn_blocking/capped", capped: true, colour: [230, 159, 0], job: spawn_blocking },
    Variant { name: "tower-resilience", capped: false, colour: [204, 121, 167], job: tower_resilience },
    Variant { name: "offload/threads", capped: false, colour: [0, 114, 178], job: offload_threads },
    Variant { name: "offload/rayon", capped: false, colour: [0, 158, 115], job: offload_rayon },
    Variant { name: "offload/tokio", capped: false, colour: [86, 180, 233], job: offload_tokio },
    Variant { name: "offload/bounded", capped: false, colour: [140, 86, 20], job: offload_bounded },
    Variant { name: "offload/codel", capped: false, colour: [110, 50, 160], job: offload_codel },
    Variant { name: "offload/nice", capped: false, colour: [0, 90, 60], job: offload_nice },
    Variant { name: "offload/blocking", capped: false, colour: [120, 120, 120], job: offload_blocking },
];

pub(crate) fn named(name: &str) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| variant.name == name)
}

/// The variants that any of the filters names, by the whole name or else by a part of it. All of them without a filter.
pub(crate) fn matching(filters: &[String]) -> Result<Vec<Variant>, BoxError> {
    if filters.is_empty() {
        return Ok(VARIANTS.to_vec());
    }
    let mut chosen = vec![false; VARIANTS.len()];
    for filter in filters {
        let exact = named(filter).is_some();
        let mut found = false;
        for (variant, chosen) in VARIANTS.iter().zip(&mut chosen) {
            if if exact { variant.name == filter } else { variant.name.contains(filter.as_str()) } {
                (*chosen, found) = (true, true);
            }
        }
        if !found {
            let names: Vec<_> = VARIANTS.iter().map(|variant| variant.name).collect();
            return Err(format!("no variant is named like `{filter}`; there are {}", names.join(", ")).into());
        }
    }
    Ok(VARIANTS.iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(variant, _)| *variant).collect())
}

/// Work in an `async fn`, as it is written by accident, and as the layers find it.
fn inline(work: Work) -> Router {
    on_job(get(move || async move {
        work.run();
        "done"
    }))
}

/// The remedy by hand.
fn spawn_blocking(work: Work) -> Router {
    on_job(get(move || async move {
        match tokio::task::spawn_blocking(move || work.run()).await {
            Ok(()) => Ok("done"),
            Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }))
}

/// `BlockingExecutor` is what its documentation names for computation and blocking calls: it drives the handler's future on
/// a thread of `spawn_blocking`, uncapped. (`ExecutorLayer::current()` would compute on the event loop.) Its error is not
/// `Infallible`, so axum wants the handler around it.
fn tower_resilience(work: Work) -> Router {
    inline(work).layer(
        ServiceBuilder::new()
            .layer(HandleErrorLayer::new(|_: ExecutorError<std::convert::Infallible>| async {
                StatusCode::INTERNAL_SERVER_ERROR
            }))
            .layer(ExecutorLayer::new(BlockingExecutor::current())),
    )
}

fn offload_threads(work: Work) -> Router {
    offload(work, ThreadPool::cpu())
}

fn offload_rayon(work: Work) -> Router {
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(crate::latency::server::cores())
        .build()
        .expect("a server that just started has threads left");
    offload(work, Rayon::new(threads))
}

fn offload_tokio(work: Work) -> Router {
    offload(work, TokioBlocking::new(crate::latency::server::cores()))
}

/// Room for as many calls as take 80 ms on two cores.
fn offload_bounded(work: Work) -> Router {
    offload(work, built(ThreadPool::builder().queue_capacity(32)))
}

/// A queue as long as by default, in which no call waits for long.
fn offload_codel(work: Work) -> Router {
    offload(work, built(ThreadPool::builder().queue_policy(Codel::default())))
}

/// Gives way to the event loop, whose threads compute little.
fn offload_nice(work: Work) -> Router {
    offload(work, built(ThreadPool::builder().niceness(10)))
}

/// The preset for work that waits.
fn offload_blocking(work: Work) -> Router {
    offload(work, ThreadPool::blocking(64))
}

fn built(builder: tower_offload::pool::Builder) -> ThreadPool {
    builder.build().expect("a server that just started has threads left")
}

/// `Problem`, so that the client can tell calls that expired from those for which there was no room.
fn offload(work: Work, pool: impl Pool) -> Router {
    inline(work).layer(OffloadLayer::new(pool).reject(ProblemJson))
}

fn on_job(handler: MethodRouter) -> Router {
    Router::new().route("/job", handler)
}
