use http::StatusCode;

use super::{
    access::Access,
    config::Config,
    problem::Problem,
    respond::{self, Answer, visible},
};
use crate::TaskId;

/// 202 while the task has still to stop, 200 once it is over, however often and by whomever it is asked.
pub(super) async fn cancel(config: Config, id: TaskId, access: Access) -> Answer {
    match ask(config, id, &access).await {
        Ok(answer) => answer,
        Err(problem) => problem.into_response(),
    }
}

async fn ask(config: Config, id: TaskId, access: &Access) -> Result<Answer, Problem> {
    if config.source.is_closed() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the process is about to end"));
    }
    visible(config.source.get(id).await, access)?; // before anything is done to what is somebody else's
    let record = visible(config.source.cancel(id).await, access)?;
    let mut answer = respond::status(&record);
    if !record.state.is_final() {
        *answer.status_mut() = StatusCode::ACCEPTED;
    }
    Ok(answer)
}
