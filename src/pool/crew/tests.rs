use std::time::Duration;

use tokio::time::{Instant, advance};

use super::*;
use crate::pool::Codel;

/// A job that knows when it came.
#[derive(Debug)]
struct Job(u32, Instant);

impl Waits for Job {
    fn since(&self) -> Instant {
        self.1
    }
}

fn take(crew: &Crew<Job>, hand: &mut Hand<Job>) -> (u32, Vec<u32>) {
    let Step::Run(turn) = crew.step(hand, true) else { panic!("a job waits") };
    assert!(turn.spawn.is_none());
    (turn.job.0, hand.shed.drain(..).map(|job| job.0).collect())
}

/// The clock is tokio's, and stands still but for `advance`.
#[tokio::test(start_paused = true)]
async fn a_crew_sheds_by_the_clock_and_recovers() {
    let (target, interval) = (Duration::from_millis(10), Duration::from_millis(100));
    let limits = Limits { min: 1, max: 1, reserved: 0 };
    let crew = Crew::new(limits, Codel::new(target, interval).into(), false);
    assert!(crew.hire());
    let mut hand = Hand::hired();
    let push = |number| assert!(crew.push(Job(number, Instant::now()), Priority::Normal, false).is_none());

    (0..3).for_each(push);
    advance(interval - Duration::from_millis(1)).await;
    assert_eq!(crew.longest_wait(), interval - Duration::from_millis(1));
    assert_eq!(take(&crew, &mut hand), (0, vec![]), "a burst is worked off");
    advance(Duration::from_millis(1)).await;
    (3..6).for_each(push);
    assert_eq!(take(&crew, &mut hand), (5, vec![1, 2]), "an interval has passed");
    advance(2 * target).await;
    assert_eq!(take(&crew, &mut hand), (4, vec![]), "twice the target is not more than that");
    advance(Duration::from_millis(1)).await;
    assert_eq!(take(&crew, &mut hand), (3, vec![]), "whoever is alone is not shed");
    assert_eq!((crew.longest_wait(), crew.is_empty()), (Duration::ZERO, true));

    (6..8).for_each(push);
    advance(interval / 2).await;
    assert_eq!(take(&crew, &mut hand), (6, vec![]), "the load has ended: oldest first again");
    assert_eq!(take(&crew, &mut hand), (7, vec![]));
}
