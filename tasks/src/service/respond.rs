use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS},
};
use http_body::Body;
use serde::Serialize;

use super::{
    ResponseBody,
    access::Access,
    prefer::PREFER,
    problem::{self, Problem},
};
use crate::{Record, Status, StoreError, store::Found};

pub(super) type Answer = Response<ResponseBody>;

pub(super) fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(text) => text_of("application/json", text.into()),
        Err(_) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written as JSON").into_response()
        }
    }
}

/// Nothing of this is kept on the way: it may be another thing a moment later, and is not for everybody.
pub(super) fn text_of(content_type: &'static str, text: Bytes) -> Answer {
    let mut answer = Response::new(ResponseBody::from(text));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

pub(super) fn status(record: &Record) -> Answer {
    let status = Status::from(record);
    let mut answer = json(&status);
    if let Some(after) = status.retry_after() {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    answer
}

/// The record, if there is one for that access; otherwise what to answer.
pub(super) fn visible(found: Result<Found, StoreError>, access: &Access) -> Result<Box<Record>, Problem> {
    match found {
        Ok(Found::Record(record)) if access.sees(record.owner.as_deref()) => Ok(record),
        Ok(Found::Evicted { owner }) if access.sees(owner.as_deref()) => {
            Err(Problem::new(StatusCode::GONE, "there was such a task, and it is kept no more"))
        }
        Ok(_) => Err(problem::unknown()),
        Err(error) => Err(problem::of_store(&error)),
    }
}

/// What every answer has. To HEAD the head of what GET would get.
pub(super) fn finish(mut answer: Answer, is_head: bool) -> Answer {
    if is_head {
        let body = std::mem::take(answer.body_mut());
        if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
            answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

pub(super) fn vary_by_accept(answer: &mut Answer) {
    vary(answer, &ACCEPT);
}

pub(super) fn vary_by_prefer<B>(answer: &mut Response<B>) {
    vary(answer, &PREFER);
}

fn vary<B>(answer: &mut Response<B>, name: &HeaderName) {
    answer.headers_mut().append(VARY, HeaderValue::from_name(name.clone()));
}
