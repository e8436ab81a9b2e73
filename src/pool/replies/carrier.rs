use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::Post;

/// How often the carrier looks into the list before it lets other tasks run: those it woke, for instance.
const ROUNDS: usize = 4;

/// The task that carries wakers into its runtime. It lives as long as the pool and the runtime do.
#[derive(Debug)]
pub(super) struct Carrier {
    post: Arc<Post>,
    /// Empty between polls; kept for its memory.
    wakers: Vec<Waker>,
}

impl Carrier {
    pub(super) fn new(post: Arc<Post>) -> Self {
        Self { post, wakers: Vec::new() }
    }
}

impl Future for Carrier {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        for _ in 0..ROUNDS {
            let ended = this.post.poll_take(cx, &mut this.wakers);
            if this.wakers.is_empty() {
                return ended;
            }
            this.wakers.drain(..).for_each(Waker::wake);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.post.leave().into_iter().for_each(Waker::wake);
    }
}
