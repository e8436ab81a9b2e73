use std::{sync::Arc, thread, time::Duration};

use super::Posts;
use crate::sync::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, fence};

/// How long a caller waits at most, give or take, in a list that nobody fetches: twice this. Some ten times what it takes to
/// wake a runtime that sleeps.
const ROUND: Duration = Duration::from_millis(1);

/// After so many rounds in which nobody was carried the watch ends. A pool that gets busy again pays one spawn for it.
const QUIET_ROUNDS: u32 = 100;

/// A thread that looks after lists which are not fetched, while any are in use.
///
/// Invariant: while a list is not empty, the watch is on, or whoever filled the list is about to look. For he puts the waker in,
/// then looks here; and the watch clears this, then looks into the lists: one of the two sees the other.
#[derive(Debug)]
pub(super) struct Watch(AtomicBool);

impl Watch {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// To be called after a list was filled. `true` if the caller has to see to it that somebody watches.
    pub(super) fn is_missing(&self) -> bool {
        fence(SeqCst);
        !self.0.load(Relaxed) && !self.0.swap(true, SeqCst)
    }

    /// Ends the watch. `false` if there is something to watch after all, and nobody else does.
    pub(super) fn end(&self, all_empty: impl Fn() -> bool) -> bool {
        self.0.store(false, Relaxed);
        fence(SeqCst);
        all_empty() || self.0.swap(true, SeqCst)
    }
}

/// What the thread does. `posts` are shared with the pool, and with nobody else.
pub(super) fn watch(posts: &Arc<Posts>) {
    let (mut carried, mut quiet) = (0, 0);
    while Arc::strong_count(posts) > 1 {
        thread::sleep(ROUND);
        let before = std::mem::take(&mut carried);
        for post in posts.all() {
            let (sent, emptied) = post.look();
            sent.wake();
            carried += emptied;
        }
        quiet = if carried == before { quiet + 1 } else { 0 };
        if quiet >= QUIET_ROUNDS && posts.watch.end(|| posts.all().iter().all(|post| post.is_empty())) {
            return;
        }
    }
}
