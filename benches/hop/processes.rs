//! The pool of processes.

use std::{env, time::Duration};

use serde::{Deserialize, Serialize, Serializer};
use tower_offload::process::{self, Context, ProcessPool, Work};
use tower_offload_benches::{BoxError, platform};

use crate::{
    Pin, QUEUE_CAPACITY, Sample,
    load::{Stage, cores_across, job, pin_to_core_of_jobs},
};

/// Environment variable of a worker process: the core that its threads are pinned to.
const CORE: &str = "TOWER_OFFLOAD_HOP_CORE";

/// Timeout for the end of the processes, which have no job left.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves jobs if this is a worker process. Otherwise returns at once.
pub(crate) fn init() {
    // Before the process starts a thread, which inherits the core.
    if let Some(core) = env::var(CORE).ok().and_then(|core| core.parse().ok()) {
        // The parent has checked that the core exists.
        let _ = platform::pin(core);
    }
    process::init::<Multiply>();
}

/// The job of every variant, as a value.
#[derive(Serialize, Deserialize)]
struct Multiply(#[serde(serialize_with = "pin_and_encode")] u64);

impl Work for Multiply {
    const KIND: &'static str = "multiply";
    type Output = u64;
    type Error = String;

    fn run(self, _: &Context) -> Result<u64, String> {
        Ok(job(self.0))
    }
}

/// Runs on the thread of the pool that drives a process, which is pinned like every thread that
/// runs jobs.
#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn pin_and_encode<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    pin_to_core_of_jobs();
    number.serialize(serializer)
}

pub(crate) fn measure(stage: &Stage) -> Result<Sample, BoxError> {
    let core = match stage.scene.pin {
        Pin::Cross => Some((CORE, cores_across()?.1.to_string())),
        Pin::None | Pin::One => None,
    };
    let pool = ProcessPool::builder()
        .processes(stage.scene.threads)
        .spares(0)
        .queue_capacity(QUEUE_CAPACITY)
        .environment(core)
        .build()?;
    let sample = stage.measure({
        let pool = pool.clone();
        move |number| {
            let call = pool.run(Multiply(number));
            async { call.await.map_err(|error| error.to_string()) }
        }
    });
    // The processor time of processes that are not reaped counts as that of others.
    stage.runtime.block_on(pool.shutdown(SHUTDOWN_TIMEOUT));
    sample
}
