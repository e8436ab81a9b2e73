use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{access::Access, config::Config};
use crate::{StoreError, TaskId, store::Found};

/// A client that may wait for the end of a task. It has a place as a stream does.
pub(super) struct Wait {
    at_most: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Wait {
    /// For as long as the service allows. `None` if it does not want to, or there is no place: then nobody waits.
    pub(super) fn admit(config: &Config, wanted: Option<Duration>) -> Option<Self> {
        let at_most = wanted?.min(config.max_wait);
        Some(Self { at_most, _permit: config.streams.clone().try_acquire_owned().ok()? })
    }

    /// As it is said to have been [applied](https://www.rfc-editor.org/rfc/rfc7240#section-3).
    pub(super) fn preference(&self) -> String {
        format!("wait={}", self.at_most.as_secs())
    }

    /// What is found once the task is over, the time has passed or streams end. Whoever may not see the task does not wait.
    pub(super) async fn for_end(&self, config: &Config, id: TaskId, access: &Access) -> Result<Found, StoreError> {
        let found = config.source.get(id).await?;
        let is_worth_it = matches!(&found, Found::Record(record)
            if !record.state.is_final() && access.sees(record.owner.as_deref()));
        if !is_worth_it {
            return Ok(found);
        }
        let Some(mut changes) = config.source.subscribe(id).await? else { return config.source.get(id).await };
        let until_end = async {
            while !changes.record().state.is_final() {
                if !changes.changed().await? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        match timeout(self.at_most, unless(config.source.streams_end(), until_end)).await {
            Ok(Some(Ok(true))) => config.source.get(id).await, // it is gone, so that there is nothing left to wait for
            Ok(Some(Err(error))) => Err(error),
            Ok(None | Some(Ok(false))) | Err(_) => Ok(Found::Record(Box::new(changes.record().clone()))),
        }
    }
}

/// `None` if `stop` comes first. If both are there, `work` counts.
async fn unless<T>(stop: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    let (mut stop, mut work) = (pin!(stop), pin!(work));
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => stop.as_mut().poll(cx).map(|()| None),
    })
    .await
}
