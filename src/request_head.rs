//! The part of an HTTP request that closures of the layers read.

use std::{fmt, sync::Arc};

use http::{Extensions, HeaderMap, Method, Request, Uri, Version};

/// An HTTP request without its body.
///
/// Closures of the layers receive it, for example in [`filter`](crate::OffloadLayer::filter),
/// [`priority`](crate::OffloadLayer::priority) and [`propagate`](crate::OffloadLayer::propagate).
/// It is not generic over the body, so the closure's argument needs no type annotation.
pub struct RequestHead<'a> {
    method: &'a Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> RequestHead<'a> {
    /// Returns the head of `request`.
    pub fn new<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }

    /// Returns the method.
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// Returns the target as the handler sees it: in a nested axum router, without the router's
    /// prefix.
    pub fn uri(&self) -> &'a Uri {
        self.uri
    }

    /// Returns the protocol version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns the header fields.
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// Returns the extensions that outer layers attached to the request.
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }
}

impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", self.method)
            .field("uri", self.uri)
            .field("version", &self.version)
            .field("headers", self.headers)
            .finish_non_exhaustive()
    }
}

/// A closure of a layer that reads a request: either its head ([`OfHead`]) or all of it
/// ([`OfRequest`]). The module is private, which seals the trait.
#[diagnostic::on_unimplemented(
    message = "a closure that reads the head of an `http::Request` cannot read requests of type `{Req}`",
    note = "for other requests use the method whose name ends in `_request`: `.filter_request(|request: &MyRequest| ..)`, \
            `.priority_request(..)`, `.propagate_request(..)` or `.route_request(..)`"
)]
pub trait View<Req>: Clone + Send + Sync {
    /// The value that the closure returns.
    type Output;

    /// Calls the closure.
    fn view(&self, request: &Req) -> Self::Output;

    /// Returns the head of `request` if the closure reads heads.
    fn head<'a>(&self, request: &'a Req) -> Option<RequestHead<'a>>;
}

/// A closure that reads the head of HTTP requests, such as that of
/// [`filter`](crate::OffloadLayer::filter).
pub struct OfHead<F>(Arc<F>);

/// A closure that reads whole requests of any type, such as that of
/// [`filter_request`](crate::OffloadLayer::filter_request).
pub struct OfRequest<F>(Arc<F>);

impl<F> OfHead<F> {
    pub(crate) fn new(closure: F) -> Self {
        Self(Arc::new(closure))
    }
}

impl<F> OfRequest<F> {
    pub(crate) fn new(closure: F) -> Self {
        Self(Arc::new(closure))
    }
}

impl<F, B, T> View<Request<B>> for OfHead<F>
where
    F: Fn(&RequestHead<'_>) -> T + Send + Sync,
{
    type Output = T;

    fn view(&self, request: &Request<B>) -> T {
        (self.0)(&RequestHead::new(request))
    }

    fn head<'a>(&self, request: &'a Request<B>) -> Option<RequestHead<'a>> {
        Some(RequestHead::new(request))
    }
}

impl<F, Req, T> View<Req> for OfRequest<F>
where
    F: Fn(&Req) -> T + Send + Sync,
{
    type Output = T;

    fn view(&self, request: &Req) -> T {
        (self.0)(request)
    }

    fn head<'a>(&self, _: &'a Req) -> Option<RequestHead<'a>> {
        None
    }
}

impl<F> Clone for OfHead<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F> Clone for OfRequest<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F> fmt::Debug for OfHead<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfHead")
    }
}

impl<F> fmt::Debug for OfRequest<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfRequest")
    }
}
