mod carrier;
#[cfg(all(test, tower_offload_loom))]
mod loom;
mod post;
mod watch;

use std::sync::Arc;

use tokio::runtime::{Handle, Id};

pub(super) use self::post::Post;
use self::{
    carrier::Carrier,
    watch::{Watch, watch},
};
use super::call::Reply;
use crate::sync::{Mutex, lock};

/// Wakes the callers of finished calls, many at a time.
///
/// To wake a task from a thread that is none of its runtime's is a system call: the runtime may sleep. At hundreds of calls
/// at once that is a third of what a call costs. So wakers are put into a list, and only the first one in wakes the runtime:
/// a task there, the [`Carrier`], wakes the others from within, where it costs next to nothing.
///
/// Nobody may wait much longer for that than for a wake of their own. A carrier runs if and when the tasks of its runtime do, so
/// only tasks are carried, and only by their own runtime:
/// * the caller is a task that awaits the call where it made it (`Reply::is_task`), and its waker is of the carrier's kind. A
///   caller that blocks its thread, or wraps wakers, has another;
/// * the carrier has been polled before: somebody drives that runtime.
///
/// That leaves those who cannot be told from such tasks: a `LocalSet` that a task drives while it blocks its thread, and tasks
/// that make their calls inside another runtime that they entered. For their sake whoever leaves a list behind empties it,
/// and a [`Watch`] does while everybody is busy: they wait a millisecond or two.
#[derive(Debug)]
pub(super) struct Replies(Arc<Posts>);

#[derive(Debug)]
struct Posts {
    /// One for each runtime that calls came from.
    posts: Mutex<Vec<(Id, Arc<Post>)>>,
    watch: Watch,
}

impl Posts {
    fn all(&self) -> Vec<Arc<Post>> {
        lock(&self.posts).iter().map(|(_, post)| post.clone()).collect()
    }
}

impl Replies {
    pub(super) fn new() -> Self {
        Self(Arc::new(Posts { posts: Mutex::new(Vec::new()), watch: Watch::new() }))
    }

    pub(super) fn post(&self, runtime: &Handle) -> Arc<Post> {
        let id = runtime.id();
        let post = {
            let mut posts = lock(&self.0.posts);
            if let Some((_, post)) = posts.iter().find(|(known, _)| *known == id) {
                return post.clone();
            }
            posts.retain(|(_, post)| !post.is_gone());
            let post = Arc::new(Post::default());
            posts.push((id, post.clone()));
            post
        };
        runtime.spawn(Carrier::new(post.clone()));
        post
    }

    /// Wakes the caller, or puts it into the list; see [`Post::send`].
    pub(super) fn send(&self, post: &Post, reply: Reply, alone: bool) {
        let sent = post.send(reply, alone);
        let filled = matches!(sent, post::Sent::Carrier(_));
        sent.wake();
        if filled && self.0.watch.is_missing() {
            let posts = self.0.clone();
            let thread = std::thread::Builder::new().name("offload-replies".to_owned());
            if thread.spawn(move || watch(&posts)).is_err() {
                self.0.watch.end(|| true);
                post.recall().wake(); // then nobody is carried unless somebody watches
            }
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        for (_, post) in lock(&self.0.posts).drain(..) {
            if let Some(carrier) = post.close() {
                carrier.wake();
            }
        }
    }
}
