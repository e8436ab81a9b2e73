use std::sync::Arc;

use tokio::runtime::Handle;

use super::{
    call::{Ahead, Reply},
    replies::{Post, Replies},
};

/// Calls that a thread runs one after the other, without sleeping between them and all made in one runtime. What they have in
/// common is done once: that runtime is entered, and their callers are woken together.
#[derive(Debug)]
pub(super) struct Stretch<'a> {
    ahead: Ahead<'a>,
    runtime: Option<&'a Handle>,
    replies: &'a Replies,
    /// Known from the second reply on; most stretches of a pool that is not busy have only one.
    post: Option<Arc<Post>>,
    first: bool,
}

impl<'a> Stretch<'a> {
    pub(super) fn enter(runtime: Option<&'a Handle>, replies: &'a Replies) -> Self {
        Self { ahead: Ahead::enter(runtime), runtime, replies, post: None, first: true }
    }

    /// Whether the next call is part of the stretch.
    pub(super) fn covers(&self, runtime: Option<&Handle>) -> bool {
        self.ahead.covers(runtime)
    }

    /// Wakes a caller, now or together with others. `more` says whether others are likely to follow soon.
    pub(super) fn send(&mut self, reply: Reply, more: bool) {
        let first = std::mem::replace(&mut self.first, false);
        match self.runtime {
            Some(runtime) if reply.is_task && !first => {
                let post = self.post.get_or_insert_with(|| self.replies.post(runtime));
                self.replies.send(post, reply, !more);
            }
            _ => reply.wake(),
        }
    }
}

impl Drop for Stretch<'_> {
    /// The thread turns to other things, or to sleep: it will not look after the list any more.
    fn drop(&mut self) {
        if let Some(post) = &self.post {
            post.recall().wake();
        }
    }
}
