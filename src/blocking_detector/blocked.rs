use std::{fmt, time::Duration};

use http::Method;

/// A report that a service has blocked a thread, passed to
/// [`on_blocking`](super::BlockingDetectorLayer::on_blocking), or that it still does, passed to
/// [`on_still_blocking`](super::BlockingDetectorLayer::on_still_blocking).
#[derive(Debug, Clone, Copy)]
pub struct Blocked<'a> {
    pub(super) route: &'a str,
    pub(super) method: Option<&'a Method>,
    pub(super) step: Step,
    pub(super) duration: Duration,
    pub(super) thread: &'a ThreadInfo,
}

/// The identity of a thread.
#[derive(Debug)]
pub(super) struct ThreadInfo {
    pub(super) name: Option<Box<str>>,
    pub(super) id: Option<u32>,
}

/// A step of a request that occupies the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// The service's `call`.
    Call,
    /// A poll of the response future, counted from 1.
    Poll(u64),
}

impl<'a> Blocked<'a> {
    /// Returns the name of the route. See [the name of a route](super#the-name-of-a-route).
    ///
    /// It may be the path as the client sent it. Limit the number of different values before you
    /// use it as the label of a metric.
    pub fn route(&self) -> &'a str {
        self.route
    }

    /// Returns the method of an HTTP request, if the layer names requests by head or path.
    pub fn method(&self) -> Option<&'a Method> {
        self.method
    }

    /// Returns the step that blocked the thread.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Returns how long the thread was blocked, or has been blocked so far.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Returns the name of the blocked thread. The workers of a tokio runtime share a name.
    pub fn thread_name(&self) -> Option<&'a str> {
        self.thread.name.as_deref()
    }

    /// Returns the operating system's id of the blocked thread, by which a debugger finds it. Linux
    /// only, elsewhere `None`.
    pub fn thread_id(&self) -> Option<u32> {
        self.thread.id
    }
}

impl ThreadInfo {
    pub(super) fn current() -> Self {
        #[cfg(target_os = "linux")]
        let id = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).ok();
        #[cfg(not(target_os = "linux"))]
        let id = None;
        Self { name: std::thread::current().name().map(Box::from), id }
    }
}

impl Step {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Call => Self::Poll(1),
            Self::Poll(number) => Self::Poll(number + 1),
        }
    }

    /// Returns 0 for `call` and the number of a poll otherwise.
    #[cfg(feature = "tracing")]
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Call => 0,
            Self::Poll(number) => number,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call => f.write_str("call"),
            Self::Poll(number) => write!(f, "poll {number}"),
        }
    }
}
