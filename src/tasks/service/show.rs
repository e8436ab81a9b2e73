use std::time::Duration;

use http::HeaderValue;
use tokio::time::timeout;

use super::{
    access::Access,
    config::Config,
    prefer::PREFERENCE_APPLIED,
    respond::{self, Answer, visible},
};
use crate::tasks::{StoreError, TaskId, store::Found};

/// The status, once the task is over or `wait` has passed. Those who wait take the same places as streams; without a free one nobody waits.
pub(super) async fn show(config: Config, id: TaskId, access: Access, wait: Option<Duration>) -> Answer {
    let wait = wait.map(|wait| wait.min(config.max_wait));
    let place = wait.and_then(|wait| Some((wait, config.streams.clone().try_acquire_owned().ok()?)));
    let found = match &place {
        Some((wait, _)) => wait_for_end(&config, id, &access, *wait).await,
        None => config.source.get(id).await,
    };
    let mut answer = match visible(found, &access) {
        Ok(record) => respond::status(&record),
        Err(problem) => return problem.into_response(),
    };
    if let Some((wait, _)) = place {
        let applied = HeaderValue::try_from(format!("wait={}", wait.as_secs()));
        answer.headers_mut().extend(applied.ok().map(|applied| (PREFERENCE_APPLIED, applied)));
    }
    respond::vary_by_prefer(&mut answer);
    answer
}

async fn wait_for_end(config: &Config, id: TaskId, access: &Access, wait: Duration) -> Result<Found, StoreError> {
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
    match timeout(wait, until_end).await {
        Ok(Ok(true)) => config.source.get(id).await, // it is gone, so that there is nothing left to wait for
        Ok(Err(error)) => Err(error),
        Ok(Ok(false)) | Err(_) => Ok(Found::Record(Box::new(changes.record().clone()))),
    }
}
