use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::runtime::{Handle, Id};

use crate::sync::{Mutex, lock};

/// Wakes the callers of finished calls, many at a time.
///
/// To wake a task from a thread that is none of its runtime's is a system call: it may sleep. At hundreds of calls at once
/// that is most of what a call costs. So wakers are put into a list, and only the first one in wakes the runtime: a task
/// there, the carrier, wakes the others from within, where it costs next to nothing.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// One for each runtime that calls came from.
    posts: Mutex<Vec<(Id, Arc<Post>)>>,
}

impl Replies {
    /// Takes the waker of a task of that runtime. Returns whom to wake now: the carrier, the task itself, or nobody.
    pub(super) fn send(&self, runtime: &Handle, waker: Waker) -> Option<Waker> {
        match self.post(runtime).send(waker) {
            Ok(carrier) => carrier,
            Err(waker) => {
                // The runtime is shutting down, or gone.
                lock(&self.posts).retain(|(_, post)| !post.is_gone());
                Some(waker)
            }
        }
    }

    fn post(&self, runtime: &Handle) -> Arc<Post> {
        let id = runtime.id();
        if let Some((_, post)) = lock(&self.posts).iter().find(|(known, _)| *known == id) {
            return post.clone();
        }
        let post = Arc::new(Post::default());
        lock(&self.posts).push((id, post.clone())); // two for one runtime, if two threads come here at once: no harm
        runtime.spawn(Carrier { post: post.clone(), wakers: Vec::new() });
        post
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        for (_, post) in lock(&self.posts).drain(..) {
            if let Some(carrier) = post.close() {
                carrier.wake();
            }
        }
    }
}

/// The list of one runtime.
///
/// Invariant: a waker in the list is carried, for who puts the first one in wakes the carrier, and the carrier sleeps only
/// after it has seen the list empty; both under the lock. A carrier that goes takes all of them along.
#[derive(Debug, Default)]
pub(super) struct Post {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    wakers: Vec<Waker>,
    /// `None` before its first poll, which comes by itself.
    carrier: Option<Waker>,
    closed: bool,
    gone: bool,
}

impl Post {
    fn send(&self, waker: Waker) -> Result<Option<Waker>, Waker> {
        let mut list = lock(&self.list);
        if list.gone {
            return Err(waker);
        }
        list.wakers.push(waker);
        Ok(if list.wakers.len() == 1 { list.carrier.clone() } else { None })
    }

    fn is_gone(&self) -> bool {
        lock(&self.list).gone
    }

    fn close(&self) -> Option<Waker> {
        let mut list = lock(&self.list);
        list.closed = true;
        list.carrier.clone()
    }

    /// Fills `wakers`, which is empty. If there are none, the carrier is woken for the next; `Ready` if there will be none.
    fn poll_take(&self, cx: &mut Context<'_>, wakers: &mut Vec<Waker>) -> Poll<()> {
        let mut list = lock(&self.list);
        std::mem::swap(&mut list.wakers, wakers);
        if !wakers.is_empty() {
            return Poll::Pending;
        }
        if list.closed {
            return Poll::Ready(());
        }
        if !list.carrier.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            list.carrier = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The carrier goes: nobody will empty the list any more.
    fn leave(&self) -> Vec<Waker> {
        let mut list = lock(&self.list);
        list.gone = true;
        list.carrier = None;
        std::mem::take(&mut list.wakers)
    }
}

/// The task that carries wakers into its runtime. It lives as long as the pool and the runtime do.
struct Carrier {
    post: Arc<Post>,
    /// Empty between polls; kept for its memory.
    wakers: Vec<Waker>,
}

/// How often the carrier looks into the list before it lets other tasks run: those it woke, for instance.
const ROUNDS: usize = 4;

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

#[cfg(all(test, tower_offload_loom))]
mod loom;
