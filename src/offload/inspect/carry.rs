use std::{fmt, sync::Arc};

use http::Request;

use super::{Inspect, debug_wrapper};
use crate::{head::Head, pool::Priority};

/// Made by [`OffloadLayer::carry`](crate::offload::OffloadLayer::carry).
pub struct Carry<A, C, P> {
    inner: A,
    closures: Arc<(C, P)>,
}

impl<A, C, P> Carry<A, C, P> {
    pub(crate) fn new(inner: A, capture: C, scope: P) -> Self {
        Self { inner, closures: Arc::new((capture, scope)) }
    }
}

impl<A, C, P, V, B> Inspect<Request<B>> for Carry<A, C, P>
where
    A: Inspect<Request<B>>,
    C: Fn(&Head<'_>) -> V + Send + Sync + 'static,
    P: Fn(V, &mut dyn FnMut()) + Send + Sync + 'static,
    V: Clone + Send + 'static,
{
    type Carried = (A::Carried, V);

    fn offloads(&self, request: &Request<B>) -> bool {
        self.inner.offloads(request)
    }

    fn priority(&self, request: &Request<B>) -> Priority {
        self.inner.priority(request)
    }

    fn capture(&self, request: &Request<B>) -> Self::Carried {
        (self.inner.capture(request), (self.closures.0)(&Head::new(request)))
    }

    fn within(&self, (outer, value): &Self::Carried, poll: &mut dyn FnMut()) {
        self.inner.within(outer, &mut || (self.closures.1)(value.clone(), poll));
    }
}

impl<A: Clone, C, P> Clone for Carry<A, C, P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), closures: self.closures.clone() }
    }
}

impl<A: fmt::Debug, C, P> fmt::Debug for Carry<A, C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_wrapper(f, "Carry", &self.inner)
    }
}

/// Made by [`OffloadLayer::carry_request`](crate::offload::OffloadLayer::carry_request).
pub struct CarryRequest<A, C, P> {
    inner: A,
    closures: Arc<(C, P)>,
}

impl<A, C, P> CarryRequest<A, C, P> {
    pub(crate) fn new(inner: A, capture: C, scope: P) -> Self {
        Self { inner, closures: Arc::new((capture, scope)) }
    }
}

impl<A, C, P, V, Req> Inspect<Req> for CarryRequest<A, C, P>
where
    A: Inspect<Req>,
    C: Fn(&Req) -> V + Send + Sync + 'static,
    P: Fn(V, &mut dyn FnMut()) + Send + Sync + 'static,
    V: Clone + Send + 'static,
{
    type Carried = (A::Carried, V);

    fn offloads(&self, request: &Req) -> bool {
        self.inner.offloads(request)
    }

    fn priority(&self, request: &Req) -> Priority {
        self.inner.priority(request)
    }

    fn capture(&self, request: &Req) -> Self::Carried {
        (self.inner.capture(request), (self.closures.0)(request))
    }

    fn within(&self, (outer, value): &Self::Carried, poll: &mut dyn FnMut()) {
        self.inner.within(outer, &mut || (self.closures.1)(value.clone(), poll));
    }
}

impl<A: Clone, C, P> Clone for CarryRequest<A, C, P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), closures: self.closures.clone() }
    }
}

impl<A: fmt::Debug, C, P> fmt::Debug for CarryRequest<A, C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_wrapper(f, "CarryRequest", &self.inner)
    }
}
