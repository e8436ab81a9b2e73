use std::{borrow::Cow, fmt, time::Duration};

use super::{Background, Body, Over, Rejected, Reservation, TaskHandle};

/// Where tracked work can be registered: a [`Background`], which starts it as soon as there is a permit, or, with feature
/// `after-response`, an `AfterResponse`, which starts it if the response is a success.
///
/// Sealed: what [`tasks`](crate::tasks) asks of it may grow.
pub trait Register: sealed::Sealed {}

/// Out of reach for others, who cannot name the module.
#[allow(missing_docs, unreachable_pub)]
pub mod sealed {
    use super::{Cow, Place, Rejected};

    #[doc(hidden)]
    pub trait Sealed: Sync {
        /// Takes the place of a task now. Work that is given to it later runs at most once, and whoever
        /// [asks](Place::on_over) is told what became of it exactly once.
        fn place(&self, name: Cow<'static, str>) -> Result<Place, Rejected>;
    }
}

impl Register for Background {}

impl sealed::Sealed for Background {
    fn place(&self, name: Cow<'static, str>) -> Result<Place, Rejected> {
        Ok(Place::new(self.reserve(name)?, Reservation::spend))
    }
}

/// A place for work of either kind. Dropped, the task is skipped.
#[doc(hidden)]
#[must_use = "dropping it gives the place back"]
pub struct Place {
    reservation: Reservation,
    spend: Box<dyn FnOnce(Reservation, Body) -> TaskHandle + Send>,
    awaits_response: bool,
}

impl Place {
    pub fn new(reservation: Reservation, spend: impl FnOnce(Reservation, Body) -> TaskHandle + Send + 'static) -> Self {
        Self { reservation, spend: Box::new(spend), awaits_response: false }
    }

    /// What is done with it begins only after the response that is being made.
    #[cfg(feature = "after-response")]
    pub fn after_response(self) -> Self {
        Self { awaits_response: true, ..self }
    }

    pub fn awaits_response(&self) -> bool {
        self.awaits_response
    }

    /// As [`Reservation::with_limit`].
    pub fn with_limit(self, limit: Option<Duration>) -> Self {
        Self { reservation: self.reservation.with_limit(limit), ..self }
    }

    /// As [`Reservation::on_over`]. `Over::Skipped` says that the response failed, or that the place was dropped.
    pub fn on_over(self, callback: impl FnOnce(Over) + Send + 'static) -> Self {
        Self { reservation: self.reservation.on_over(callback), ..self }
    }

    /// As [`Reservation::handle`].
    pub fn handle(&self) -> TaskHandle {
        self.reservation.handle()
    }

    pub fn spend(self, body: Body) -> TaskHandle {
        (self.spend)(self.reservation, body)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("reservation", &self.reservation).finish_non_exhaustive()
    }
}
