use std::{borrow::Cow, sync::Arc};

use http::{Method, Request, uri::PathAndQuery};

use crate::request_head::{RequestHead, View};

/// Names the requests of type `Req`.
///
/// The methods of [`BlockingDetectorLayer`](super::BlockingDetectorLayer) choose the
/// implementation. The trait is sealed; it is public so that a function which returns a layer can
/// name it as a bound.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot name requests of type `{Req}`",
    note = "the default, and `.route(..)`, read the head of an `http::Request`",
    note = "for other requests use `.named(\"..\")` or `.route_request(|request: &MyRequest| ..)`"
)]
pub trait Naming<Req>: Clone + Send + Sync + sealed::Sealed {
    /// Returns the name of the request.
    fn name(&self, request: &Req) -> Name;
}

mod sealed {
    pub trait Sealed {}
}

/// Names HTTP requests by axum's matched path if there is one, otherwise by their path. The default
/// of a layer.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByPath;

impl sealed::Sealed for ByPath {}

impl<B> Naming<Request<B>> for ByPath {
    fn name(&self, request: &Request<B>) -> Name {
        Name::by_path(&RequestHead::new(request))
    }
}

/// Gives all requests one name. Created by
/// [`BlockingDetectorLayer::named`](super::BlockingDetectorLayer::named).
#[derive(Debug, Clone)]
pub struct FixedName {
    name: Arc<str>,
}

impl FixedName {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name }
    }
}

impl sealed::Sealed for FixedName {}

impl<Req> Naming<Req> for FixedName {
    fn name(&self, _: &Req) -> Name {
        Name { route: Route::Fixed(self.name.clone()), method: None }
    }
}

/// Names requests with a closure. Created by
/// [`BlockingDetectorLayer::route`](super::BlockingDetectorLayer::route) and
/// [`route_request`](super::BlockingDetectorLayer::route_request).
#[derive(Debug, Clone)]
pub struct RouteFn<V> {
    route: V,
}

impl<V> RouteFn<V> {
    pub(super) fn new(route: V) -> Self {
        Self { route }
    }
}

impl<V> sealed::Sealed for RouteFn<V> {}

impl<V, Req> Naming<Req> for RouteFn<V>
where
    V: View<Req, Output = Name>,
{
    fn name(&self, request: &Req) -> Name {
        let method = self.route.head(request).map(|head| head.method().clone());
        Name { method, ..self.route.view(request) }
    }
}

/// A closure that names requests of type `Req`. It is boxed, because rustc cannot prove that a
/// closure which returns a `&'static str` names requests where it has erased that lifetime
/// (rust-lang/rust#110338).
pub type RouteOf<Req> = Box<dyn Fn(&Req) -> Name + Send + Sync>;

/// A closure that names HTTP requests by their head. Boxed like [`RouteOf`].
pub type RouteOfHead = Box<dyn Fn(&RequestHead<'_>) -> Name + Send + Sync>;

/// The name of a request. Created by a [`Naming`].
///
/// It is created for every request, but read only for requests that block. It therefore holds cheap
/// clones instead of text.
#[derive(Debug, Clone)]
pub struct Name {
    route: Route,
    method: Option<Method>,
}

#[derive(Debug, Clone)]
enum Route {
    Fixed(Arc<str>),
    Closure(Cow<'static, str>),
    #[cfg(feature = "axum")]
    Matched(::axum::extract::MatchedPath),
    /// `None` for a target without a path, such as that of `CONNECT`.
    Path(Option<PathAndQuery>),
}

impl Name {
    pub(super) fn from_closure(route: impl Into<Cow<'static, str>>) -> Self {
        Self { route: Route::Closure(route.into()), method: None }
    }

    fn by_path(head: &RequestHead<'_>) -> Self {
        let method = Some(head.method().clone());
        #[cfg(feature = "axum")]
        if let Some(matched) = head.extensions().get::<::axum::extract::MatchedPath>() {
            return Self { route: Route::Matched(matched.clone()), method };
        }
        Self { route: Route::Path(head.uri().path_and_query().cloned()), method }
    }

    pub(super) fn route(&self) -> &str {
        match &self.route {
            Route::Fixed(name) => name,
            Route::Closure(route) => route,
            #[cfg(feature = "axum")]
            Route::Matched(matched) => matched.as_str(),
            Route::Path(path) => path.as_ref().map_or("", PathAndQuery::path),
        }
    }

    pub(super) fn method(&self) -> Option<&Method> {
        self.method.as_ref()
    }

    /// Returns `true` if clients cannot make up further names, so that the name can be a label
    /// without a limit.
    #[cfg(feature = "metrics")]
    pub(super) fn is_bounded(&self) -> bool {
        match self.route {
            Route::Fixed(_) => true,
            #[cfg(feature = "axum")]
            Route::Matched(_) => true,
            Route::Closure(_) | Route::Path(_) => false,
        }
    }
}
