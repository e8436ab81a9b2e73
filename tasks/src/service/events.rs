use http::{Response, StatusCode};

use super::{
    ResponseBody,
    access::Access,
    config::Config,
    milestone::{Milestone, Place},
    problem::{self, Problem},
    respond::{Answer, text_of, visible},
    stream::EventStream,
};
use crate::{TaskId, store::Found};

/// The events behind the place that a client was told up to. Once it was told all, 204: that keeps a browser from coming back.
pub(super) async fn events(config: Config, id: TaskId, access: Access, told: Option<Place>) -> Answer {
    match open(config, id, &access, told).await {
        Ok(answer) => answer,
        Err(problem) => problem.into_response(),
    }
}

async fn open(config: Config, id: TaskId, access: &Access, told: Option<Place>) -> Result<Answer, Problem> {
    let record = visible(config.source.get(id).await, access)?;
    if record.state.is_final() && told.is_some() && Milestone::after(told, &record).is_empty() {
        let mut answer = Response::new(ResponseBody::default());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        return Ok(answer);
    }
    let full = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open");
    let permit = config.streams.clone().try_acquire_owned().map_err(|_| full())?;
    let Some(changes) = config.source.subscribe(id).await.map_err(|error| problem::of_store(&error))? else {
        visible(config.source.get(id).await, access)?;
        return Err(problem::unknown());
    };
    visible(Ok(Found::Record(Box::new(changes.record().clone()))), access)?;
    let mut answer = text_of("text/event-stream", Default::default());
    *answer.body_mut() = ResponseBody::of_events(EventStream::new(changes, told, &config, permit));
    Ok(answer)
}
