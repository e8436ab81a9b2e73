use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

/// Blocks tasks and threads at its doors until it is opened or dropped.
pub(crate) struct Latch {
    opened: watch::Sender<bool>,
    came: Arc<Semaphore>,
}

/// A handle on which a task or thread waits for a [`Latch`].
#[derive(Clone)]
pub(crate) struct Door {
    opened: watch::Receiver<bool>,
    came: Arc<Semaphore>,
}

impl Latch {
    pub(crate) fn new() -> Self {
        Self { opened: watch::Sender::new(false), came: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) fn door(&self) -> Door {
        Door { opened: self.opened.subscribe(), came: self.came.clone() }
    }

    /// Opens all doors, forever.
    pub(crate) fn open(&self) {
        self.opened.send_replace(true);
    }

    /// Waits until another task or thread has reached a door.
    pub(crate) async fn reached(&self) {
        self.came.acquire().await.unwrap().forget();
    }
}

impl Door {
    pub(crate) async fn pass(mut self) {
        self.came.add_permits(1);
        let _ = self.opened.wait_for(|opened| *opened).await;
    }

    /// Blocks the thread until the latch is opened.
    pub(crate) fn block(self) {
        pollster::block_on(self.pass());
    }
}
