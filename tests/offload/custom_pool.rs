use std::{future::poll_fn, sync::Arc, task::Poll};

use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer,
    offload::{RejectWithError, service_fn_blocking},
    pool::{Admission, Pool, Runnable},
};

use crate::support::{TestResult, eventually, soon};

/// Drops every runnable, like a faulty pool.
#[derive(Debug)]
struct Forgetful(Admission);

impl Pool for Forgetful {
    fn admission(&self) -> &Admission {
        &self.0
    }

    fn schedule(&self, runnable: Runnable) {
        drop(runnable);
    }
}

#[tokio::test]
async fn dropped_runnable_ends_its_call_as_closed() {
    let pool = Arc::new(Forgetful(Admission::new("forgetful", 1)));
    let service =
        OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn_blocking(|()| TestResult::Ok(())));
    for _ in 0..3 {
        let error = soon(service.clone().oneshot(())).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&CallError::Closed));
    }
    assert_eq!(pool.admission().stats().rejected, 3);
    eventually(|| pool.admission().stats().in_flight == 0).await;
}

/// Keeps its runnables until the test runs them, and then panics if a call is queued again.
#[derive(Debug)]
struct Panicking(Admission, std::sync::Mutex<Vec<Runnable>>);

impl Pool for Panicking {
    fn admission(&self) -> &Admission {
        &self.0
    }

    fn schedule(&self, runnable: Runnable) {
        let has_started = runnable.has_started();
        self.1.lock().unwrap().push(runnable);
        assert!(!has_started, "a call was queued again");
    }
}

#[tokio::test]
async fn pool_that_panics_after_it_has_queued_a_call_does_not_fail_it() {
    let pool = Arc::new(Panicking(Admission::new("panicking", 1), Default::default()));
    let run_next = || {
        let next = pool.1.lock().unwrap().pop();
        next.expect("a call is queued").run();
    };
    let wakes_itself_once = service_fn(|()| {
        let mut is_first = true;
        poll_fn(move |cx| {
            if std::mem::take(&mut is_first) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(TestResult::Ok("done"))
        })
    });
    let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(wakes_itself_once);
    let call = tokio::spawn(service.oneshot(()));
    eventually(|| !pool.1.lock().unwrap().is_empty()).await;
    run_next();
    assert!(!call.is_finished(), "the call is queued again");
    run_next();
    assert_eq!(soon(call).await.unwrap().unwrap(), "done");
    assert_eq!(pool.admission().stats().in_flight, 0);
}

/// Refuses every call that has not started, like an overloaded pool.
#[derive(Debug)]
struct Shedding(Admission);

impl Pool for Shedding {
    fn admission(&self) -> &Admission {
        &self.0
    }

    fn schedule(&self, runnable: Runnable) {
        assert!(!runnable.has_started() && !runnable.is_cancelled());
        std::thread::spawn(move || runnable.refuse(CallError::Overloaded));
    }
}

#[tokio::test]
async fn pool_can_refuse_a_runnable_with_an_error() {
    let pool = Arc::new(Shedding(Admission::new("shedding", 1)));
    assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Overloaded));
}

#[tokio::test]
async fn admission_limits_the_queue_of_a_custom_pool() {
    /// Keeps its runnables until the test runs them.
    #[derive(Debug)]
    struct Later(Admission, std::sync::Mutex<Vec<Runnable>>);
    impl Pool for Later {
        fn admission(&self) -> &Admission {
            &self.0
        }

        fn schedule(&self, runnable: Runnable) {
            self.1.lock().unwrap().push(runnable);
        }
    }
    let pool = Arc::new(Later(Admission::new("later", 2), Default::default()));
    let accepted = [pool.run(|| 1), pool.run(|| 2)];
    assert_eq!(soon(pool.run(|| 3)).await, Err(CallError::Overloaded));
    for runnable in std::mem::take(&mut *pool.1.lock().unwrap()) {
        runnable.run();
    }
    for (number, run) in (1..).zip(accepted) {
        assert_eq!(soon(run).await, Ok(number));
    }
}
