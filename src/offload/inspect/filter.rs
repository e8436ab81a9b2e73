use std::{fmt, sync::Arc};

use http::Request;

use super::{Inspect, debug_wrapper};
use crate::{head::Head, pool::Priority};

/// Made by [`OffloadLayer::filter`](crate::offload::OffloadLayer::filter).
pub struct Filter<A, F> {
    inner: A,
    predicate: Arc<F>,
}

impl<A, F> Filter<A, F> {
    pub(crate) fn new(inner: A, predicate: F) -> Self {
        Self { inner, predicate: Arc::new(predicate) }
    }
}

impl<A, F, B> Inspect<Request<B>> for Filter<A, F>
where
    A: Inspect<Request<B>>,
    F: Fn(&Head<'_>) -> bool + Send + Sync + 'static,
{
    type Carried = A::Carried;

    fn offloads(&self, request: &Request<B>) -> bool {
        (self.predicate)(&Head::new(request)) && self.inner.offloads(request)
    }

    fn priority(&self, request: &Request<B>) -> Priority {
        self.inner.priority(request)
    }

    fn capture(&self, request: &Request<B>) -> Self::Carried {
        self.inner.capture(request)
    }

    fn within(&self, carried: &Self::Carried, poll: &mut dyn FnMut()) {
        self.inner.within(carried, poll);
    }
}

impl<A: Clone, F> Clone for Filter<A, F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), predicate: self.predicate.clone() }
    }
}

impl<A: fmt::Debug, F> fmt::Debug for Filter<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_wrapper(f, "Filter", &self.inner)
    }
}

/// Made by [`OffloadLayer::filter_request`](crate::offload::OffloadLayer::filter_request).
pub struct FilterRequest<A, F> {
    inner: A,
    predicate: Arc<F>,
}

impl<A, F> FilterRequest<A, F> {
    pub(crate) fn new(inner: A, predicate: F) -> Self {
        Self { inner, predicate: Arc::new(predicate) }
    }
}

impl<A, F, Req> Inspect<Req> for FilterRequest<A, F>
where
    A: Inspect<Req>,
    F: Fn(&Req) -> bool + Send + Sync + 'static,
{
    type Carried = A::Carried;

    fn offloads(&self, request: &Req) -> bool {
        (self.predicate)(request) && self.inner.offloads(request)
    }

    fn priority(&self, request: &Req) -> Priority {
        self.inner.priority(request)
    }

    fn capture(&self, request: &Req) -> Self::Carried {
        self.inner.capture(request)
    }

    fn within(&self, carried: &Self::Carried, poll: &mut dyn FnMut()) {
        self.inner.within(carried, poll);
    }
}

impl<A: Clone, F> Clone for FilterRequest<A, F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), predicate: self.predicate.clone() }
    }
}

impl<A: fmt::Debug, F> fmt::Debug for FilterRequest<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_wrapper(f, "FilterRequest", &self.inner)
    }
}
