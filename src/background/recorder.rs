//! What feature `metrics` records of tasks, by name. Names come from the program's text, so there are few.

use std::time::Duration;

use metrics::{counter, histogram};

use super::{control::Control, state::Ended};

pub(super) fn began(control: &Control, waited: Duration) {
    histogram!("offload_background_queue_wait_seconds", "task" => control.name.clone()).record(waited);
}

pub(super) fn ended(control: &Control, ended: Ended, ran: Option<Duration>) {
    let outcome = match ended {
        Ended::Cancelled => "cancelled",
        Ended::Completed => "completed",
        Ended::Failed => "failed",
    };
    counter!("offload_background_ended_total", "task" => control.name.clone(), "outcome" => outcome).increment(1);
    if let Some(ran) = ran {
        histogram!("offload_background_run_seconds", "task" => control.name.clone()).record(ran);
    }
}
