use std::sync::Arc;

use tower::ServiceExt;
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer,
    offload::{Typed, sync_fn},
    pool::{Admission, Pool, Runnable},
};

use crate::support::{Answer, eventually, soon};

/// Loses every job: what happens to a call that a pool forgets.
#[derive(Debug)]
struct Forgetful(Admission);

impl Pool for Forgetful {
    fn admission(&self) -> &Admission {
        &self.0
    }

    fn schedule(&self, job: Runnable) {
        drop(job);
    }
}

#[tokio::test]
async fn a_job_that_a_pool_drops_is_answered_closed() {
    let pool = Arc::new(Forgetful(Admission::new("forgetful", 1)));
    let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(sync_fn(|()| Answer::Ok(())));
    for _ in 0..3 {
        let error = soon(service.clone().oneshot(())).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&CallError::Closed));
    }
    assert_eq!(pool.admission().stats().rejected, 3);
    eventually(|| pool.admission().stats().in_flight == 0).await;
}

/// Sheds every job that has not started, as a queueing policy would.
#[derive(Debug)]
struct Shedding(Admission);

impl Pool for Shedding {
    fn admission(&self) -> &Admission {
        &self.0
    }

    fn schedule(&self, job: Runnable) {
        assert!(!job.has_started() && !job.is_cancelled());
        std::thread::spawn(move || job.refuse(CallError::Expired));
    }
}

#[tokio::test]
async fn a_job_can_be_refused_with_a_reason() {
    let pool = Arc::new(Shedding(Admission::new("shedding", 1)));
    assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Expired));
}

#[tokio::test]
async fn the_capacity_of_a_custom_pool_is_kept_by_its_gate() {
    /// Keeps its jobs for later.
    #[derive(Debug)]
    struct Later(Admission, std::sync::Mutex<Vec<Runnable>>);
    impl Pool for Later {
        fn admission(&self) -> &Admission {
            &self.0
        }

        fn schedule(&self, job: Runnable) {
            self.1.lock().unwrap().push(job);
        }
    }
    let pool = Arc::new(Later(Admission::new("later", 2), Default::default()));
    let accepted = [pool.run(|| 1), pool.run(|| 2)];
    assert_eq!(soon(pool.run(|| 3)).await, Err(CallError::Overloaded));
    for job in std::mem::take(&mut *pool.1.lock().unwrap()) {
        job.run();
    }
    for (number, run) in (1..).zip(accepted) {
        assert_eq!(soon(run).await, Ok(number));
    }
}
