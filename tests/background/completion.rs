//! `TaskTarget` and `Reservation` as another crate uses them.

use std::{borrow::Cow, sync::mpsc};

use tower_offload::{
    Background,
    background::{Completion, Reservation, SubmitError, TaskTarget},
};

use crate::support::{LONG, panics, shut_down, with_threads};

/// A target that delegates to another one and counts the tasks.
struct Counting<'a> {
    target: &'a Background,
    sender: mpsc::SyncSender<Completion>,
}

impl TaskTarget for Counting<'_> {
    fn reserve(&self, name: Cow<'static, str>) -> Result<Reservation, SubmitError> {
        let sender = self.sender.clone();
        let reservation = TaskTarget::reserve(self.target, name)?;
        Ok(reservation.on_completion(move |completion| sender.send(completion).unwrap()))
    }
}

#[tokio::test]
async fn a_delegating_target_sees_each_completion_once() {
    let background = with_threads(1).max_tasks(3).max_running(1).build();
    let (sender, completions) = mpsc::sync_channel(10);
    let target: &dyn TaskTarget = &Counting { target: &background, sender };
    let skipped = target.reserve("skipped".into()).unwrap();
    let closure = target.reserve("closure".into()).unwrap();
    let future = target.reserve("future".into()).unwrap();
    assert!(target.reserve("rejected".into()).unwrap_err().is_full());
    assert!(!closure.awaits_response());
    drop(skipped);
    closure.spawn_blocking(|| Err("no"));
    future.spawn(async {});
    shut_down(&background).await;
    let completions: Vec<_> = completions.try_iter().collect();
    assert_eq!(completions, [Completion::Skipped, Completion::Failed, Completion::Completed]);
}

#[tokio::test]
async fn cancelling_a_reservation_completes_it_when_it_ends() {
    let background = with_threads(1).build();
    let (sender, completions) = mpsc::channel();
    let reservation = background.reserve("").unwrap();
    let handle = reservation.handle();
    let reservation = reservation.on_completion(move |completion| sender.send(completion).unwrap());
    assert!(handle.cancel() && !handle.cancel());
    assert!(completions.try_recv().is_err());
    reservation.spawn_blocking(|| panics("a cancelled task ran"));
    assert_eq!(completions.recv_timeout(LONG), Ok(Completion::Cancelled));
    assert!(!handle.is_background_closed());
    shut_down(&background).await;
    assert!(handle.is_background_closed());
}

#[tokio::test]
async fn a_completion_callback_delays_the_end_of_a_shutdown() {
    let background = with_threads(1).build();
    let (release, released) = mpsc::channel::<()>();
    let reservation = background.reserve("").unwrap();
    reservation.on_completion(move |_| _ = released.recv()).spawn_blocking(|| ());
    let mut shutdown = Box::pin(background.shutdown(LONG));
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    drop(release);
    assert!(shutdown.await.is_clean());
}
