use std::sync::OnceLock;

use tower_offload::{
    Background, Pool,
    pool::{Gate, Job},
};

use crate::support::{drained, logging, panics};

/// A pool on which a task is cancelled after it got its permit and before it begins.
#[derive(Debug)]
struct Meddling {
    gate: Gate,
    background: OnceLock<Background>,
}

impl Pool for Meddling {
    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn schedule(&self, job: Job) {
        assert_eq!(self.background.get().unwrap().cancel("cancelled"), 1);
        job.run();
    }
}

#[test]
fn what_is_cancelled_between_its_permit_and_its_beginning_never_runs_e4() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let works: [fn(&Background); 2] = [
        |background| drop(background.task("cancelled").run(|| panics("ran")).unwrap()),
        |background| drop(background.task("cancelled").spawn(async { panics("ran") }).unwrap()),
    ];
    for work in works {
        let pool = std::sync::Arc::new(Meddling { gate: Gate::new("meddling", 1), background: OnceLock::new() });
        let (background, failures) = logging(Background::builder().pool(pool.clone()));
        pool.background.set(background.clone()).unwrap();
        work(&background); // outside of any runtime: on the pool, both of them
        let stats = runtime.block_on(drained(&background));
        assert_eq!((stats.cancelled, stats.completed, stats.failed), (1, 0, 0));
        assert!(failures.entries().is_empty(), "{:?}", failures.entries());
    }
}
