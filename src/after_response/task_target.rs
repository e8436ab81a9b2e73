use std::borrow::Cow;

use super::AfterResponse;
use crate::background::{Reservation, SubmitError, TaskTarget};

impl TaskTarget for AfterResponse {
    /// Admits a task with the default options: it runs if the response is a success, after the
    /// tasks that were registered before it.
    fn reserve(&self, name: Cow<'static, str>) -> Result<Reservation, SubmitError> {
        let reservation = self.background().reserve_after_response(name.clone(), None)?;
        Ok(self.task(name).defer(reservation))
    }
}
