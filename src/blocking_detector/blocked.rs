use std::time::Duration;

use http::Method;

/// A thread was held for too long: what [`on_blocking`](super::BlockingDetectorLayer::on_blocking) is told.
#[derive(Debug, Clone, Copy)]
pub struct Blocked<'a> {
    pub(super) route: &'a str,
    pub(super) method: Option<&'a Method>,
    pub(super) held: Duration,
    pub(super) poll: u64,
}

impl<'a> Blocked<'a> {
    /// Whose work held the thread. See [the name of a route](super#the-name-of-a-route).
    ///
    /// May be the path as the client sent it: as a metric's label it wants a bound.
    pub fn route(&self) -> &'a str {
        self.route
    }

    /// The request's method, if it is an HTTP request and the layer looks at its head or path.
    pub fn method(&self) -> Option<&'a Method> {
        self.method
    }

    /// For how long.
    pub fn held(&self) -> Duration {
        self.held
    }

    /// Which poll of the future it was, from 1; 0 is the service's `call`.
    pub fn poll(&self) -> u64 {
        self.poll
    }
}
