//! Group commit: a commit waits for the disk, and what arrives meanwhile goes together into the next one.

use tokio::sync::{mpsc, oneshot};

use super::engine::Engine;
use crate::{
    StoreError,
    store::{Epoch, Op, Written},
};

/// What one caller writes.
pub(super) struct Batch {
    pub(super) epoch: Epoch,
    pub(super) ops: Vec<Op>,
}

/// Leads to the one task that writes. It ends with the last of these.
#[derive(Clone)]
pub(super) struct Writer {
    requests: mpsc::Sender<Request>,
}

struct Request {
    batch: Batch,
    reply: oneshot::Sender<Result<Vec<Written>, StoreError>>,
}

/// Beyond these, callers wait outside.
const MAX_WAITING: usize = 1024;
/// Enough to share the cost of a commit, and few enough that nobody waits long for one.
const MAX_OPS: usize = 512;

impl Writer {
    pub(super) fn spawn(engine: Engine) -> Self {
        let (requests, waiting) = mpsc::channel(MAX_WAITING);
        tokio::spawn(run(waiting, engine));
        Self { requests }
    }

    /// Once it is committed, or failed. Who no longer waits for the answer has written all the same.
    pub(super) async fn write(&self, epoch: Epoch, ops: Vec<Op>) -> Result<Vec<Written>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { batch: Batch { epoch, ops }, reply };
        self.requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn gone() -> StoreError {
    StoreError::unavailable("the runtime on which it was opened has ended")
}

async fn run(mut waiting: mpsc::Receiver<Request>, engine: Engine) {
    while let Some(first) = waiting.recv().await {
        let mut replies = vec![first.reply];
        let mut count = first.batch.ops.len();
        let mut batches = vec![first.batch];
        while count < MAX_OPS
            && let Ok(next) = waiting.try_recv()
        {
            count += next.batch.ops.len();
            replies.push(next.reply);
            batches.push(next.batch);
        }
        match engine.database().write(&batches).await {
            Ok(written) => replies.into_iter().zip(written).for_each(|(reply, written)| {
                let _ = reply.send(Ok(written));
            }),
            Err(error) => replies.into_iter().for_each(|reply| {
                let _ = reply.send(Err(error.again()));
            }),
        }
    }
}
