use std::time::Duration;

use tokio::time::{Instant, advance};

use crate::pool::scheduler::{Action, Class, Codel, Limits, QueueItem, Scheduler, WakeUp, WorkerState};

#[derive(Debug)]
struct Call(u32, Instant);

impl QueueItem for Call {
    fn queued_at(&self) -> Instant {
        self.1
    }
}

/// Returns the numbers of the call that the worker takes and of the calls that are shed.
fn take(scheduler: &Scheduler<Call>, worker: &mut WorkerState<Call>) -> (u32, Vec<u32>) {
    let Action::Run(dequeued) = scheduler.next(worker, true) else { panic!("no call is queued") };
    assert!(!dequeued.spawn_worker);
    (dequeued.item.0, worker.shed.drain(..).map(|call| call.0).collect())
}

#[tokio::test(start_paused = true)]
async fn scheduler_sheds_by_the_clock_and_recovers() {
    let (target, interval) = (Duration::from_millis(10), Duration::from_millis(100));
    let scheduler = Scheduler::new(Limits { min: 1, max: 1 }, Codel::new(target, interval).into(), false);
    assert!(scheduler.add_worker());
    let mut worker = WorkerState::busy();
    let push = |number| assert_ne!(scheduler.push(Call(number, Instant::now()), Class::default()), WakeUp::Spawn);

    (0..3).for_each(push);
    advance(interval - Duration::from_millis(1)).await;
    assert_eq!(scheduler.longest_wait(), interval - Duration::from_millis(1));
    assert_eq!(take(&scheduler, &mut worker), (0, vec![]), "a burst is worked off");
    advance(Duration::from_millis(1)).await;
    (3..6).for_each(push);
    assert_eq!(take(&scheduler, &mut worker), (5, vec![1, 2]), "an interval has passed");
    advance(2 * target).await;
    assert_eq!(take(&scheduler, &mut worker), (4, vec![]), "twice the target is the limit");
    advance(Duration::from_millis(1)).await;
    assert_eq!(take(&scheduler, &mut worker), (3, vec![]), "the only call is not shed");
    assert_eq!((scheduler.longest_wait(), scheduler.is_empty()), (Duration::ZERO, true));

    (6..8).for_each(push);
    advance(interval / 2).await;
    assert_eq!(take(&scheduler, &mut worker), (6, vec![]), "the load has ended: oldest first again");
    assert_eq!(take(&scheduler, &mut worker), (7, vec![]));
}
