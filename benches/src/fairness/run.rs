//! One round of a variant, in a child process: an open loop of calls of both tenants.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{runtime, task::JoinSet};
use tower_offload::{
    ThreadPool,
    pool::{CallOptions, Pool},
};

use super::{ALONE, FIFO, GREED, GROUPS, KEYS, LOAD, Order, SPLIT, Sample, THREADS};
use crate::BoxError;

/// Part of the measurement that is not counted, in which the queue fills.
const WARM_UP: f64 = 0.2;

/// Number of keys that the greedy tenant uses.
const SPLIT_KEYS: u64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tenant {
    Greedy,
    Quiet,
}

/// The child's side: measures one round.
pub fn run(order: Order) -> Result<Vec<Sample>, BoxError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(vec![runtime.block_on(measure(&order))?])
}

async fn measure(order: &Order) -> Result<Sample, BoxError> {
    let service = Duration::from_micros(order.scene.service_us);
    let pool = ThreadPool::builder().threads(THREADS).build()?;
    let busy = Arc::new(AtomicU64::new(0));
    let call = |options: CallOptions| {
        let busy = busy.clone();
        pool.run_with(options, move || {
            let start = Instant::now();
            thread::sleep(service);
            let end = Instant::now();
            busy.fetch_add(u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX), Relaxed);
            end
        })
    };

    let greedy_interval = service / LOAD / u32::try_from(THREADS)?;
    let greedy_rate = if order.variant == ALONE { Duration::MAX } else { greedy_interval };
    let (mut greedy, mut quiet) = (Duration::ZERO, greedy_interval * GREED / 3);
    let (mut calls, mut sent) = (JoinSet::new(), 0_u64);
    let (start, warm_up) = (Instant::now(), order.length.mul_f64(WARM_UP));
    let mut busy_before = None;
    let (mut latencies, mut rejected, mut answered) = (Histogram::<u64>::new(3)?, 0_usize, 0_usize);
    while start.elapsed() < order.length {
        let now = start.elapsed();
        if now >= warm_up && busy_before.is_none() {
            busy_before = Some((busy.load(Relaxed), now));
        }
        while greedy_rate != Duration::MAX && greedy <= now {
            greedy += greedy_rate;
            sent += 1;
            let mut run = Box::pin(call(options(&order.variant, Tenant::Greedy, sent)?));
            // Most calls are rejected, and need no task.
            let polled = poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx))).await;
            if polled.is_pending() {
                calls.spawn(async move { (Tenant::Greedy, Duration::ZERO, run.await.is_ok()) });
            }
        }
        while quiet <= now {
            let is_counted = quiet >= warm_up;
            quiet += greedy_interval * GREED;
            let called = Instant::now();
            let run = call(options(&order.variant, Tenant::Quiet, sent)?);
            let tenant = if is_counted { Tenant::Quiet } else { Tenant::Greedy };
            calls.spawn(async move {
                let result = pin!(run).await;
                // The end is that of the work, so that the generator does not measure itself.
                (tenant, result.map_or(Duration::ZERO, |end| end - called), result.is_ok())
            });
        }
        while let Some(ended) = calls.try_join_next() {
            let (tenant, latency, is_ok) = ended?;
            if tenant == Tenant::Quiet && is_ok {
                answered += 1;
                latencies.record(u64::try_from(latency.as_nanos())?)?;
            }
            rejected += usize::from(tenant == Tenant::Quiet && !is_ok);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (before, since) = busy_before.unwrap_or_default();
    let measured = start.elapsed() - since;
    let busy = Duration::from_nanos(busy.load(Relaxed) - before);
    calls.shutdown().await;
    pool.shutdown(Duration::ZERO).await;
    let quantile = |q| (answered > 0).then(|| latencies.value_at_quantile(q) as f64 / service.as_nanos() as f64);
    Ok(Sample {
        p50: quantile(0.5),
        p99: quantile(0.99),
        rejected_pct: rejected as f64 / (rejected + answered).max(1) as f64 * 100.0,
        calls: rejected + answered,
        busy_pct: busy.div_f64(THREADS as f64).as_secs_f64() / measured.as_secs_f64() * 100.0,
    })
}

fn options(variant: &str, tenant: Tenant, number: u64) -> Result<CallOptions, BoxError> {
    let options = CallOptions::new();
    let key = if tenant == Tenant::Greedy { number % SPLIT_KEYS } else { 0 };
    Ok(match variant {
        ALONE | FIFO => options,
        KEYS => options.fair_by(tenant as u8),
        GROUPS => options.fair_by_group(tenant as u8, key),
        SPLIT => options.fair_by((tenant as u8, key)),
        _ => return Err("there is no such variant".into()),
    })
}
