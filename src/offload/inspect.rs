//! Decisions that a layer makes before a request moves to the pool: whether to offload it, its
//! priority and deadline, and the values that travel with it.
//!
//! Each method of the layer wraps the previous inspector, so `.filter(f).priority(p)` creates a
//! `Prioritize<Filter<OffloadAll, _>, _>`.

use std::{fmt, hash::Hash, sync::Arc, time::Duration};

use crate::{
    pool::{CallOptions, Priority},
    request_head::View,
};

/// Decides how a layer treats requests of type `Req`.
///
/// The methods of [`OffloadLayer`](super::OffloadLayer) build the implementations. The trait is
/// sealed; it is public so that a function which returns a layer can name it as a bound.
pub trait Inspect<Req>: Clone + Send + Sync + sealed::Sealed {
    /// The values that travel with the request to the pool.
    type Captured: Send;

    /// Returns `false` if the request is to run inline, in the caller's task.
    fn should_offload(&self, request: &Req) -> bool;

    /// Returns the options of the call that is made for the request.
    fn options(&self, request: &Req) -> CallOptions;

    /// Reads the values that travel with the request.
    fn capture(&self, request: &Req) -> Self::Captured;

    /// Calls `poll` once, with the captured values in scope.
    fn in_context(&self, captured: &Self::Captured, poll: &mut dyn FnMut());
}

mod sealed {
    pub trait Sealed {}
}

/// Offloads every request at [`Priority::Normal`] and propagates nothing. The default of a layer.
#[derive(Debug, Clone, Copy, Default)]
pub struct OffloadAll;

impl sealed::Sealed for OffloadAll {}

impl<Req> Inspect<Req> for OffloadAll {
    type Captured = ();

    #[inline]
    fn should_offload(&self, _: &Req) -> bool {
        true
    }

    #[inline]
    fn options(&self, _: &Req) -> CallOptions {
        CallOptions::new()
    }

    #[inline]
    fn capture(&self, _: &Req) {}

    #[inline]
    fn in_context(&self, (): &(), poll: &mut dyn FnMut()) {
        poll();
    }
}

/// Offloads only some requests. Created by [`OffloadLayer::filter`](super::OffloadLayer::filter)
/// and [`filter_request`](super::OffloadLayer::filter_request).
#[derive(Debug, Clone)]
pub struct Filter<A, V> {
    inner: A,
    predicate: V,
}

impl<A, V> Filter<A, V> {
    pub(super) fn new(inner: A, predicate: V) -> Self {
        Self { inner, predicate }
    }
}

impl<A, V> sealed::Sealed for Filter<A, V> {}

impl<A, V, Req> Inspect<Req> for Filter<A, V>
where
    A: Inspect<Req>,
    V: View<Req, Output = bool>,
{
    type Captured = A::Captured;

    fn should_offload(&self, request: &Req) -> bool {
        self.predicate.view(request) && self.inner.should_offload(request)
    }

    fn options(&self, request: &Req) -> CallOptions {
        self.inner.options(request)
    }

    fn capture(&self, request: &Req) -> Self::Captured {
        self.inner.capture(request)
    }

    fn in_context(&self, captured: &Self::Captured, poll: &mut dyn FnMut()) {
        self.inner.in_context(captured, poll);
    }
}

/// Gives each request a priority. Created by
/// [`OffloadLayer::priority`](super::OffloadLayer::priority) and
/// [`priority_request`](super::OffloadLayer::priority_request).
#[derive(Debug, Clone)]
pub struct Prioritize<A, V> {
    inner: A,
    priority: V,
}

impl<A, V> Prioritize<A, V> {
    pub(super) fn new(inner: A, priority: V) -> Self {
        Self { inner, priority }
    }
}

impl<A, V> sealed::Sealed for Prioritize<A, V> {}

impl<A, V, Req> Inspect<Req> for Prioritize<A, V>
where
    A: Inspect<Req>,
    V: View<Req, Output = Priority>,
{
    type Captured = A::Captured;

    fn should_offload(&self, request: &Req) -> bool {
        self.inner.should_offload(request)
    }

    fn options(&self, request: &Req) -> CallOptions {
        self.inner.options(request).priority(self.priority.view(request))
    }

    fn capture(&self, request: &Req) -> Self::Captured {
        self.inner.capture(request)
    }

    fn in_context(&self, captured: &Self::Captured, poll: &mut dyn FnMut()) {
        self.inner.in_context(captured, poll);
    }
}

/// Gives each request a key. Created by [`OffloadLayer::fair_by`](super::OffloadLayer::fair_by) and
/// [`fair_by_request`](super::OffloadLayer::fair_by_request).
#[derive(Debug, Clone)]
pub struct FairBy<A, V> {
    inner: A,
    key: V,
}

impl<A, V> FairBy<A, V> {
    pub(super) fn new(inner: A, key: V) -> Self {
        Self { inner, key }
    }
}

impl<A, V> sealed::Sealed for FairBy<A, V> {}

impl<A, V, Req> Inspect<Req> for FairBy<A, V>
where
    A: Inspect<Req>,
    V: View<Req, Output: Hash>,
{
    type Captured = A::Captured;

    fn should_offload(&self, request: &Req) -> bool {
        self.inner.should_offload(request)
    }

    fn options(&self, request: &Req) -> CallOptions {
        self.inner.options(request).fair_by(self.key.view(request))
    }

    fn capture(&self, request: &Req) -> Self::Captured {
        self.inner.capture(request)
    }

    fn in_context(&self, captured: &Self::Captured, poll: &mut dyn FnMut()) {
        self.inner.in_context(captured, poll);
    }
}

/// Gives each request a group and a key in it. Created by
/// [`OffloadLayer::fair_by_group`](super::OffloadLayer::fair_by_group) and
/// [`fair_by_group_request`](super::OffloadLayer::fair_by_group_request).
#[derive(Debug, Clone)]
pub struct FairByGroup<A, V> {
    inner: A,
    group_and_key: V,
}

impl<A, V> FairByGroup<A, V> {
    pub(super) fn new(inner: A, group_and_key: V) -> Self {
        Self { inner, group_and_key }
    }
}

impl<A, V> sealed::Sealed for FairByGroup<A, V> {}

impl<A, V, G, K, Req> Inspect<Req> for FairByGroup<A, V>
where
    A: Inspect<Req>,
    V: View<Req, Output = (G, K)>,
    G: Hash,
    K: Hash,
{
    type Captured = A::Captured;

    fn should_offload(&self, request: &Req) -> bool {
        self.inner.should_offload(request)
    }

    fn options(&self, request: &Req) -> CallOptions {
        let (group, key) = self.group_and_key.view(request);
        self.inner.options(request).fair_by_group(group, key)
    }

    fn capture(&self, request: &Req) -> Self::Captured {
        self.inner.capture(request)
    }

    fn in_context(&self, captured: &Self::Captured, poll: &mut dyn FnMut()) {
        self.inner.in_context(captured, poll);
    }
}

/// Gives each request a deadline. Created by
/// [`OffloadLayer::timeout`](super::OffloadLayer::timeout),
/// [`timeout_request`](super::OffloadLayer::timeout_request) and
/// [`grpc_timeout`](super::OffloadLayer::grpc_timeout).
#[derive(Debug, Clone)]
pub struct Timeout<A, V> {
    inner: A,
    timeout: V,
}

impl<A, V> Timeout<A, V> {
    pub(super) fn new(inner: A, timeout: V) -> Self {
        Self { inner, timeout }
    }
}

impl<A, V> sealed::Sealed for Timeout<A, V> {}

impl<A, V, Req> Inspect<Req> for Timeout<A, V>
where
    A: Inspect<Req>,
    V: View<Req, Output = Option<Duration>>,
{
    type Captured = A::Captured;

    fn should_offload(&self, request: &Req) -> bool {
        self.inner.should_offload(request)
    }

    fn options(&self, request: &Req) -> CallOptions {
        let options = self.inner.options(request);
        self.timeout.view(request).map_or(options, |timeout| options.timeout(timeout))
    }

    fn capture(&self, request: &Req) -> Self::Captured {
        self.inner.capture(request)
    }

    fn in_context(&self, captured: &Self::Captured, poll: &mut dyn FnMut()) {
        self.inner.in_context(captured, poll);
    }
}

/// Propagates a value to the pool. Created by
/// [`OffloadLayer::propagate`](super::OffloadLayer::propagate) and
/// [`propagate_request`](super::OffloadLayer::propagate_request).
pub struct Propagate<A, V, P> {
    inner: A,
    capture: V,
    scope: Arc<P>,
}

impl<A, V, P> Propagate<A, V, P> {
    pub(super) fn new(inner: A, capture: V, scope: P) -> Self {
        Self { inner, capture, scope: Arc::new(scope) }
    }
}

impl<A, V, P> sealed::Sealed for Propagate<A, V, P> {}

impl<A, V, P, Req> Inspect<Req> for Propagate<A, V, P>
where
    A: Inspect<Req>,
    V: View<Req, Output: Clone + Send>,
    P: Fn(V::Output, &mut dyn FnMut()) + Send + Sync,
{
    type Captured = (A::Captured, V::Output);

    fn should_offload(&self, request: &Req) -> bool {
        self.inner.should_offload(request)
    }

    fn options(&self, request: &Req) -> CallOptions {
        self.inner.options(request)
    }

    fn capture(&self, request: &Req) -> Self::Captured {
        (self.inner.capture(request), self.capture.view(request))
    }

    fn in_context(&self, (inner, value): &Self::Captured, poll: &mut dyn FnMut()) {
        self.inner.in_context(inner, &mut || (self.scope)(value.clone(), poll));
    }
}

impl<A: Clone, V: Clone, P> Clone for Propagate<A, V, P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), capture: self.capture.clone(), scope: self.scope.clone() }
    }
}

impl<A: fmt::Debug, V: fmt::Debug, P> fmt::Debug for Propagate<A, V, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Propagate").field("inner", &self.inner).field("capture", &self.capture).finish_non_exhaustive()
    }
}
