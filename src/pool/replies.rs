mod carrier;
#[cfg(all(test, tower_offload_loom))]
mod loom;
mod post;

use std::sync::Arc;

use tokio::runtime::{Handle, Id};

use self::carrier::Carrier;
pub(super) use self::post::Post;
use crate::sync::{Mutex, lock};

/// Wakes the callers of finished calls, many at a time.
///
/// To wake a task from a thread that is none of its runtime's is a system call: the runtime may sleep. At hundreds of calls
/// at once that is a third of what a call costs. So wakers are put into a list, and only the first one in wakes the runtime:
/// a task there, the [`Carrier`], wakes the others from within, where it costs next to nothing.
///
/// Nobody may wait longer for that than for a wake of their own. A carrier runs if and when the tasks of its runtime do, so
/// only tasks are carried, and only by their own runtime:
/// * the caller is a task that awaits the call where it made it (`Reply::is_task`), and its waker is of the carrier's
///   kind. A caller that blocks its thread, or wraps wakers, has another;
/// * the carrier has been polled before: somebody drives that runtime;
/// * what is left are runtimes that are entered inside tasks of another and driven no more. For their sake a thread that
///   leaves a list behind empties it before it sleeps, and whoever finds a stale list does so, too. Then a wake may come
///   as late as the end of the call that the thread runs meanwhile, and not later.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// One for each runtime that calls came from.
    posts: Mutex<Vec<(Id, Arc<Post>)>>,
}

impl Replies {
    pub(super) fn post(&self, runtime: &Handle) -> Arc<Post> {
        let id = runtime.id();
        let post = {
            let mut posts = lock(&self.posts);
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
