use std::collections::VecDeque;

use super::*;
use crate::pool::CallOptions;

#[test]
fn expected_wait_is_the_wait_of_the_last_started_call() {
    let admission = Admission::new("waits", 1);
    assert_eq!(admission.expected_wait(), Duration::ZERO);
    for milliseconds in [1100, 20] {
        admission.on_start(milliseconds * 1_000_000, 1_000_000_000);
        assert_eq!(admission.expected_wait(), Duration::from_millis(milliseconds));
    }
}

/// An admission with one thread that runs calls of one millisecond each.
struct Paced {
    admission: Admission,
    queue: VecDeque<(PermitKind, Option<CallKey>)>,
    changes: Vec<Change>,
}

impl Paced {
    fn new(threads: usize) -> Self {
        let admission = Admission::new("bursts", 1024).with_policy(QueuePolicy::AcceptBursts, threads);
        Self { admission, queue: VecDeque::new(), changes: Vec::new() }
    }

    fn call(&mut self, options: CallOptions) -> Result<(), CallError> {
        let (acquired, change) = self.admission.try_acquire(options.priority, options.key, PermitKind::Limited);
        self.admission.report(change);
        self.changes.extend((change != Change::None).then_some(change));
        if acquired.is_ok() {
            self.queue.push_back((PermitKind::Limited, options.key));
        }
        if let Some(len) = self.admission.take_excess() {
            let mut excess = self.limited().saturating_sub(len);
            let Self { admission, queue, .. } = self;
            queue.retain(|(kind, key)| {
                let is_shed = excess > 0 && *kind == PermitKind::Limited;
                if is_shed {
                    excess -= 1;
                    admission.release(*kind, *key);
                }
                !is_shed
            });
        }
        acquired
    }

    fn exempt_call(&mut self, options: CallOptions) -> Result<(), CallError> {
        self.admission.try_acquire(options.priority, options.key, PermitKind::Exempt).0?;
        self.queue.push_back((PermitKind::Exempt, options.key));
        Ok(())
    }

    /// Returns the number of calls in the queue that are not exempt.
    fn limited(&self) -> usize {
        self.queue.iter().filter(|(kind, _)| *kind == PermitKind::Limited).count()
    }

    async fn millisecond(&mut self) {
        self.queue.pop_front().into_iter().for_each(|(kind, key)| self.admission.release(kind, key));
        tokio::time::advance(Duration::from_millis(1)).await;
    }

    /// Lets calls arrive at three times the capacity until the pool is overloaded.
    async fn overload(&mut self) {
        while self.changes.is_empty() {
            for _ in 0..3 {
                let _ = self.call(CallOptions::new());
            }
            self.millisecond().await;
        }
        assert_eq!(self.changes, [Change::Overloaded]);
    }
}

fn of(tenant: u32) -> CallOptions {
    CallOptions::new().fair_by(tenant)
}

#[tokio::test(start_paused = true)]
async fn busy_keys_do_not_lock_out_others_during_an_overload() {
    let mut paced = Paced::new(2);
    paced.overload().await;
    for step in 0..500 {
        for key in 0..16 {
            let _ = paced.call(of(key % 8));
        }
        if step % 20 == 0 {
            assert_eq!(paced.call(of(100)), Ok(()), "step {step}");
        }
        assert!(paced.queue.len() <= 4 + 8, "{}", paced.queue.len());
        paced.millisecond().await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_do_not_fill_the_queue_of_an_overloaded_pool() {
    let mut paced = Paced::new(2);
    paced.overload().await;
    let admitted = (0..1000).filter(|key| paced.call(of(*key)).is_ok()).count();
    assert!((28..=32).contains(&admitted), "{admitted}");
}

#[tokio::test(start_paused = true)]
async fn exempt_calls_that_fill_the_queue_are_no_overload() {
    let mut paced = Paced::new(2);
    for _ in 0..500 {
        while paced.limited() < 6 && paced.call(CallOptions::new()).is_ok() {}
        while paced.exempt_call(CallOptions::new()).is_ok() {}
        assert_eq!(paced.call(CallOptions::new()), Err(CallError::Overloaded), "the queue is full");
        paced.millisecond().await;
    }
    assert_eq!(paced.changes, []);
}

#[tokio::test(start_paused = true)]
async fn overload_by_one_key_or_low_priority_lasts() {
    for options in [of(1), CallOptions::new().priority(Priority::Low)] {
        let mut paced = Paced::new(1);
        for _ in 0..1000 {
            for _ in 0..3 {
                let _ = paced.call(options);
            }
            paced.millisecond().await;
        }
        let count = |change| paced.changes.iter().filter(|it| **it == change).count();
        assert_eq!((count(Change::Overloaded), count(Change::Recovered)), (1, 0), "{:?}", paced.changes);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_without_a_key_are_not_locked_out_by_busy_keys() {
    let mut paced = Paced::new(2);
    paced.overload().await;
    for step in 0..500 {
        for key in 0..16 {
            let _ = paced.call(of(key % 8));
        }
        if step % 20 == 10 {
            assert_eq!(paced.call(CallOptions::new()), Ok(()), "step {step}");
            assert_eq!(paced.call(CallOptions::new()), Err(CallError::Overloaded), "one group");
        }
        paced.millisecond().await;
    }
}

/// Those of a background, for example.
#[tokio::test(start_paused = true)]
async fn exempt_calls_are_admitted_up_to_the_capacity_of_an_overloaded_pool() {
    let mut paced = Paced::new(2);
    paced.overload().await;
    let waiting = paced.queue.len();
    for _ in waiting..1024 {
        assert_eq!(paced.exempt_call(CallOptions::new()), Ok(()));
    }
    assert_eq!(paced.exempt_call(CallOptions::new()), Err(CallError::Overloaded));
}

#[tokio::test(start_paused = true)]
async fn exempt_calls_take_no_place_from_others_during_an_overload() {
    // A key may have half of the places.
    for (options, places) in [(CallOptions::new(), 4), (of(100), 2)] {
        let mut paced = Paced::new(2);
        paced.overload().await;
        for _ in 0..100 {
            assert_eq!(paced.exempt_call(options), Ok(()));
        }
        while paced.limited() > 0 {
            paced.millisecond().await;
        }
        assert_eq!((0..10).filter(|_| paced.call(options).is_ok()).count(), places);
    }
}

#[tokio::test(start_paused = true)]
async fn exempt_calls_are_no_overload() {
    let mut paced = Paced::new(2);
    for _ in 0..300 {
        for _ in 0..3 {
            let _ = paced.exempt_call(CallOptions::new());
        }
        paced.millisecond().await;
    }
    assert_eq!(paced.changes, []);
    assert_eq!(paced.call(CallOptions::new()), Ok(()));
}

#[test]
fn queue_that_is_shorter_than_the_limit_is_not_observed() {
    for (capacity, is_observed) in [(4, false), (5, true)] {
        let admission = Admission::new("short", capacity).with_policy(QueuePolicy::AcceptBursts, 2);
        assert_eq!(admission.overload.is_some(), is_observed);
    }
}
