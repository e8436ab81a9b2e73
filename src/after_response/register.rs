use std::borrow::Cow;

use super::{
    AfterResponse,
    entry::{Condition, Task},
};
use crate::background::{Place, Register, Rejected, Sealed};

impl Register for AfterResponse {}

impl Sealed for AfterResponse {
    /// The work goes through the request's list, as a task without options does: for a response that is a success, after those
    /// that were registered before.
    fn place(&self, name: Cow<'static, str>) -> Result<Place, Rejected> {
        let reservation = self.background().reserve(name.clone())?;
        let (after, attempt) = (self.clone(), self.attempt());
        let place = Place::new(reservation, move |reservation, body| {
            let (handle, condition) = (reservation.handle(), Condition::default());
            let task = Task { body, reservation, condition, attempt, concurrent: 1, stop_on_error: false };
            after.register_task(name, handle.id(), task);
            handle
        });
        Ok(place.after_response())
    }
}
