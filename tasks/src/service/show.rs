use std::time::Duration;

use super::{
    access::Access,
    config::Config,
    prefer,
    respond::{self, Answer, visible},
    wait::Wait,
};
use crate::TaskId;

/// The status, once the task is over or `wait` has passed.
pub(super) async fn show(config: Config, id: TaskId, access: Access, wait: Option<Duration>) -> Answer {
    let wait = Wait::admit(&config, wait);
    let found = match &wait {
        Some(wait) => wait.for_end(&config, id, &access).await,
        None => config.source.get(id).await,
    };
    let mut answer = match visible(found, &access) {
        Ok(record) => respond::status(&record),
        Err(problem) => return problem.into_response(),
    };
    prefer::note_applied(answer.headers_mut(), wait.map(|wait| wait.preference()));
    respond::vary_by_prefer(&mut answer);
    answer
}
