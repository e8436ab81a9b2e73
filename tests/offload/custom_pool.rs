use std::sync::Arc;

use tower::ServiceExt;
use tower_layer::Layer;
use tower_offload::{
    OffloadLayer, Rejection,
    offload::{Typed, sync_fn},
    pool::{Gate, Job, Pool},
};

use crate::support::{Answer, eventually, soon};

/// Loses every job: what happens to a call that a pool forgets.
#[derive(Debug)]
struct Forgetful(Gate);

impl Pool for Forgetful {
    fn gate(&self) -> &Gate {
        &self.0
    }

    fn schedule(&self, job: Job) {
        drop(job);
    }
}

#[tokio::test]
async fn a_job_that_a_pool_drops_is_answered_closed() {
    let pool = Arc::new(Forgetful(Gate::new("forgetful", 1)));
    let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(sync_fn(|()| Answer::Ok(())));
    for _ in 0..3 {
        let error = soon(service.clone().oneshot(())).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Rejection::Closed));
    }
    assert_eq!(pool.gate().stats().rejected, 3);
    eventually(|| pool.gate().stats().in_flight == 0).await;
}

/// Sheds every job that has not started, as a queueing policy would.
#[derive(Debug)]
struct Shedding(Gate);

impl Pool for Shedding {
    fn gate(&self) -> &Gate {
        &self.0
    }

    fn schedule(&self, job: Job) {
        assert!(!job.has_started() && !job.is_cancelled());
        std::thread::spawn(move || job.refuse(Rejection::Expired));
    }
}

#[tokio::test]
async fn a_job_can_be_refused_with_a_reason() {
    let pool = Arc::new(Shedding(Gate::new("shedding", 1)));
    assert_eq!(soon(pool.run(|| ())).await, Err(Rejection::Expired));
}

#[tokio::test]
async fn the_capacity_of_a_custom_pool_is_kept_by_its_gate() {
    /// Keeps its jobs for later.
    #[derive(Debug)]
    struct Later(Gate, std::sync::Mutex<Vec<Job>>);
    impl Pool for Later {
        fn gate(&self) -> &Gate {
            &self.0
        }

        fn schedule(&self, job: Job) {
            self.1.lock().unwrap().push(job);
        }
    }
    let pool = Arc::new(Later(Gate::new("later", 2), Default::default()));
    let accepted = [pool.run(|| 1), pool.run(|| 2)];
    assert_eq!(soon(pool.run(|| 3)).await, Err(Rejection::Overloaded));
    for job in std::mem::take(&mut *pool.1.lock().unwrap()) {
        job.run();
    }
    for (number, run) in (1..).zip(accepted) {
        assert_eq!(soon(run).await, Ok(number));
    }
}
