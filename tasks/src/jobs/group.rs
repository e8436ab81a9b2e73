//! Group commit for jobs: what arrives while a commit waits for the disk goes together into the next one.

use std::sync::Weak;

use tokio::sync::{mpsc, oneshot};

use super::{
    river::{InsertError, Inserted, Prepared},
    shared::Shared,
};
use crate::StoreError;

/// A job, and who waits for it to be inserted.
pub(super) struct Request {
    pub(super) job: Prepared,
    pub(super) reply: oneshot::Sender<Result<Inserted, InsertError>>,
}

/// Beyond these, callers wait outside.
pub(super) const MAX_WAITING: usize = 1024;
/// Enough to share the cost of a commit, and few enough that nobody waits long for one.
const MAX_JOBS: usize = 256;

pub(super) async fn run(mut waiting: mpsc::Receiver<Request>, shared: Weak<Shared>) {
    while let Some(first) = waiting.recv().await {
        let mut requests = vec![first];
        while requests.len() < MAX_JOBS
            && let Ok(next) = waiting.try_recv()
        {
            requests.push(next);
        }
        requests.retain(|request| !request.reply.is_closed()); // who has left wants it no more
        if requests.is_empty() {
            continue;
        }
        let Some(shared) = shared.upgrade() else { return };
        let Some(client) = shared.client() else { return };
        let jobs: Vec<_> = requests.iter().map(|request| &request.job).collect();
        match shared.database.insert(&client.river, &jobs).await {
            Ok(inserted) => requests.into_iter().zip(inserted).for_each(|(request, inserted)| {
                let _ = request.reply.send(Ok(inserted));
            }),
            Err(error) if requests.len() == 1 || error.is_about_the_database() => {
                requests.into_iter().for_each(|request| drop(request.reply.send(Err(error.duplicate()))));
            }
            // One of them may be what the database does not like; or two are duplicates of each other.
            Err(_) => {
                for request in requests {
                    let inserted = shared.database.insert(&client.river, &[&request.job]).await;
                    let inserted = inserted.and_then(|mut one| one.pop().ok_or_else(|| nothing().into()));
                    let _ = request.reply.send(inserted);
                }
            }
        }
    }
}

pub(super) fn nothing() -> StoreError {
    StoreError::other("River has not said what became of the job")
}
