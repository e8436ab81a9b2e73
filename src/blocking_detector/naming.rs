use std::{borrow::Cow, fmt, sync::Arc};

use http::Request;

use super::Name;
use crate::head::Head;

/// How a layer names requests.
///
/// Chosen by the methods of [`BlockingDetectorLayer`](super::BlockingDetectorLayer); there is no need to implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot name requests of type `{Req}`",
    note = "the default, and `.route(..)`, look at the head of an `http::Request`",
    note = "for other requests use `.named(\"..\")` or `.route_request(|request: &MyRequest| ..)`"
)]
pub trait Naming<Req>: Clone + Send + Sync + 'static {
    /// Reads the name before the request goes to the service.
    fn name(&self, request: &Req) -> Name;
}

/// By axum's matched path, else by the path: the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByPath;

impl<B> Naming<Request<B>> for ByPath {
    fn name(&self, request: &Request<B>) -> Name {
        Name::by_path(&Head::new(request))
    }
}

/// Made by [`BlockingDetectorLayer::named`](super::BlockingDetectorLayer::named).
#[derive(Debug, Clone)]
pub struct Fixed {
    name: Arc<str>,
}

impl Fixed {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name }
    }
}

impl<Req> Naming<Req> for Fixed {
    fn name(&self, _: &Req) -> Name {
        Name::fixed(self.name.clone())
    }
}

/// Made by [`BlockingDetectorLayer::route`](super::BlockingDetectorLayer::route).
pub struct ByHead<F> {
    route: Arc<F>,
}

impl<F> ByHead<F> {
    pub(super) fn new(route: F) -> Self {
        Self { route: Arc::new(route) }
    }
}

impl<F, T, B> Naming<Request<B>> for ByHead<F>
where
    F: Fn(&Head<'_>) -> T + Send + Sync + 'static,
    T: Into<Cow<'static, str>>,
{
    fn name(&self, request: &Request<B>) -> Name {
        Name::given((self.route)(&Head::new(request)).into(), Some(request.method().clone()))
    }
}

impl<F> Clone for ByHead<F> {
    fn clone(&self) -> Self {
        Self { route: self.route.clone() }
    }
}

impl<F> fmt::Debug for ByHead<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByHead").finish_non_exhaustive()
    }
}

/// Made by [`BlockingDetectorLayer::route_request`](super::BlockingDetectorLayer::route_request).
pub struct ByRequest<F> {
    route: Arc<F>,
}

impl<F> ByRequest<F> {
    pub(super) fn new(route: F) -> Self {
        Self { route: Arc::new(route) }
    }
}

impl<F, T, Req> Naming<Req> for ByRequest<F>
where
    F: Fn(&Req) -> T + Send + Sync + 'static,
    T: Into<Cow<'static, str>>,
{
    fn name(&self, request: &Req) -> Name {
        Name::given((self.route)(request).into(), None)
    }
}

impl<F> Clone for ByRequest<F> {
    fn clone(&self) -> Self {
        Self { route: self.route.clone() }
    }
}

impl<F> fmt::Debug for ByRequest<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByRequest").finish_non_exhaustive()
    }
}
