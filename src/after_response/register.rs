use std::borrow::Cow;

use super::AfterResponse;
use crate::background::{Reservation, SubmitError, TaskTarget};

impl TaskTarget for AfterResponse {
    /// Admits a task without options: it runs if the response succeeds, after the tasks that were
    /// submitted before it.
    fn reserve(&self, name: Cow<'static, str>) -> Result<Reservation, SubmitError> {
        let reservation = self.background().reserve(name.clone())?;
        Ok(self.task(name).defer(reservation))
    }
}
