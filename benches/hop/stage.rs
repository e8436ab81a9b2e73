//! One run: a variant in a scene, in a process of its own. Both sides of it.

use serde::{Deserialize, Serialize};
use tokio::{
    runtime::{self, Runtime},
    task::JoinSet,
};

use crate::{
    BoxError, alarm, child,
    hops::Hop,
    job, load,
    plan::{Flavor, Phases, Pin, Scene, THREADS},
    platform,
    rows::Sample,
    variants::{self, Variant},
};

/// A run that takes longer has lost a job.
const PATIENCE_SECONDS: u32 = 30;

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    variant: String,
    scene: Scene,
    phases: Phases,
}

/// The parent's side. It sleeps meanwhile.
pub(crate) fn run(variant: &Variant, scene: Scene, phases: Phases) -> Result<Sample, BoxError> {
    let order = Order { variant: variant.name.to_owned(), scene, phases };
    child::run(&order, format_args!("{}, {scene},", variant.name))
}

/// The child's side.
pub(crate) fn obey(order: &str) -> Result<(), BoxError> {
    let Order { variant, scene, phases } = serde_json::from_str(order)?;
    let variant = variants::named(&variant).ok_or_else(|| format!("there is no variant `{variant}`"))?;
    alarm::end_after(PATIENCE_SECONDS);
    if scene.pin == Pin::One {
        let [core, ..] = platform::cores()[..] else { return Err("threads cannot be pinned here".into()) };
        platform::pin(core)?; // before any other thread, so that all are there
    }
    let mut builder = match scene.runtime {
        Flavor::CurrentThread => runtime::Builder::new_current_thread(),
        Flavor::MultiThread => runtime::Builder::new_multi_thread(),
    };
    builder.enable_all();
    if scene.runtime == Flavor::MultiThread {
        builder.worker_threads(THREADS);
    }
    if variant.capped {
        builder.max_blocking_threads(THREADS);
    }
    let stage = Stage { runtime: builder.build()?, scene, phases };
    let sample = {
        let _inside = stage.runtime.enter();
        (variant.measure)(&stage)?
    };
    child::answer(&sample)
}

/// Where a variant shows what it can do.
#[derive(Debug)]
pub(crate) struct Stage {
    runtime: Runtime,
    scene: Scene,
    phases: Phases,
}

impl Stage {
    pub(crate) fn measure<H: Hop>(&self, hop: H) -> Result<Sample, BoxError> {
        if self.scene.pin == Pin::Cross {
            let [here, there, ..] = platform::cores()[..] else { return Err("threads cannot be pinned here".into()) };
            job::part(here, there);
        }
        let Phases { warm_up, count, measure } = self.phases;
        let (counted, timed) = self.runtime.block_on(async {
            start_all_threads(&hop).await;
            load::run(&hop, self.scene, warm_up, false).await?;
            let counted = load::run(&hop, self.scene, count, true).await?;
            let timed = load::run(&hop, self.scene, measure, false).await?;
            Ok::<_, BoxError>((counted, timed))
        })?;
        Ok(Sample {
            p50_us: timed.latency.value_at_quantile(0.5) as f64 / 1e3,
            p99_us: timed.latency.value_at_quantile(0.99) as f64 / 1e3,
            ops_per_s: timed.calls as f64 / timed.elapsed.as_secs_f64(),
            allocs_per_op: counted.allocations as f64 / counted.calls.max(1) as f64,
        })
    }
}

/// As many jobs at once as there are threads, each long enough that no thread gets two.
async fn start_all_threads<H: Hop>(hop: &H) {
    let mut jobs = JoinSet::new();
    for _ in 0..THREADS {
        let mut hop = hop.clone();
        jobs.spawn(async move { hop.call(job::PAUSE).await });
    }
    jobs.join_all().await;
}
