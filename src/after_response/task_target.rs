use std::borrow::Cow;

use super::{AfterResponse, task::Registration};
use crate::background::{Place, Register, Rejected, Sealed};

impl Register for AfterResponse {}

impl Sealed for AfterResponse {
    /// Reserves a place for a task with the default options: it runs if the response is a success,
    /// after the tasks that were registered before it.
    fn place(&self, name: Cow<'static, str>) -> Result<Place, Rejected> {
        let reservation = self.background().reserve(name.clone())?;
        let (after, registration) = (self.clone(), Registration::new(self, name));
        let place = Place::new(reservation, move |reservation, body| registration.submit(&after, reservation, body));
        Ok(place.after_response())
    }
}
