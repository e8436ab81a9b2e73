use std::sync::Arc;

use super::{shared::Shared, within};

/// Something that a drain waits for, and that is no task.
pub(crate) struct Hold(Arc<Shared>);

impl Hold {
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for those that run tasks in order"))]
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        shared.hold();
        Self(shared)
    }

    /// Runs `work` as a part of what the drain waits for: what it registers belongs to that drain.
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for those that run tasks in order"))]
    pub(crate) fn scope<T>(&self, work: impl FnOnce() -> T) -> T {
        within::scope(&*self.0, work)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.release();
    }
}
