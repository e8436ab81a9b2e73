use std::{fmt, sync::Arc};

use http::Request;

use super::{Inspect, debug_wrapper};
use crate::{head::Head, pool::Priority};

/// Made by [`OffloadLayer::priority`](crate::offload::OffloadLayer::priority).
pub struct Prioritize<A, F> {
    inner: A,
    priority: Arc<F>,
}

impl<A, F> Prioritize<A, F> {
    pub(crate) fn new(inner: A, priority: F) -> Self {
        Self { inner, priority: Arc::new(priority) }
    }
}

impl<A, F, B> Inspect<Request<B>> for Prioritize<A, F>
where
    A: Inspect<Request<B>>,
    F: Fn(&Head<'_>) -> Priority + Send + Sync + 'static,
{
    type Carried = A::Carried;

    fn offloads(&self, request: &Request<B>) -> bool {
        self.inner.offloads(request)
    }

    fn priority(&self, request: &Request<B>) -> Priority {
        (self.priority)(&Head::new(request))
    }

    fn capture(&self, request: &Request<B>) -> Self::Carried {
        self.inner.capture(request)
    }

    fn within(&self, carried: &Self::Carried, poll: &mut dyn FnMut()) {
        self.inner.within(carried, poll);
    }
}

impl<A: Clone, F> Clone for Prioritize<A, F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), priority: self.priority.clone() }
    }
}

impl<A: fmt::Debug, F> fmt::Debug for Prioritize<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_wrapper(f, "Prioritize", &self.inner)
    }
}

/// Made by [`OffloadLayer::priority_request`](crate::offload::OffloadLayer::priority_request).
pub struct PrioritizeRequest<A, F> {
    inner: A,
    priority: Arc<F>,
}

impl<A, F> PrioritizeRequest<A, F> {
    pub(crate) fn new(inner: A, priority: F) -> Self {
        Self { inner, priority: Arc::new(priority) }
    }
}

impl<A, F, Req> Inspect<Req> for PrioritizeRequest<A, F>
where
    A: Inspect<Req>,
    F: Fn(&Req) -> Priority + Send + Sync + 'static,
{
    type Carried = A::Carried;

    fn offloads(&self, request: &Req) -> bool {
        self.inner.offloads(request)
    }

    fn priority(&self, request: &Req) -> Priority {
        (self.priority)(request)
    }

    fn capture(&self, request: &Req) -> Self::Carried {
        self.inner.capture(request)
    }

    fn within(&self, carried: &Self::Carried, poll: &mut dyn FnMut()) {
        self.inner.within(carried, poll);
    }
}

impl<A: Clone, F> Clone for PrioritizeRequest<A, F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), priority: self.priority.clone() }
    }
}

impl<A: fmt::Debug, F> fmt::Debug for PrioritizeRequest<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_wrapper(f, "PrioritizeRequest", &self.inner)
    }
}
