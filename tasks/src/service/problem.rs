use http::StatusCode;

use crate::StoreError;
pub(super) use crate::problem::Problem;

pub(super) fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such task")
}

/// Of the error only what it says itself: its source may name files and servers, and is reported here.
pub(super) fn of_store(error: &StoreError) -> Problem {
    error.report();
    let is_passing = error.is_unavailable() || error.is_full() || error.is_locked();
    let status = if is_passing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR };
    Problem::new(status, error.to_string())
}
