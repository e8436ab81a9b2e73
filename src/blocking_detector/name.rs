use std::{borrow::Cow, sync::Arc};

use http::{Method, uri::PathAndQuery};

use crate::head::Head;

/// What a request is called in reports. Made by a [`Naming`](super::Naming).
///
/// Holds what costs no allocation to keep; it is made of every request, and read of the few that block.
#[derive(Debug)]
pub struct Name {
    route: Route,
    method: Option<Method>,
}

#[derive(Debug)]
enum Route {
    Fixed(Arc<str>),
    Given(Cow<'static, str>),
    #[cfg(feature = "axum")]
    Matched(::axum::extract::MatchedPath),
    /// `None`: a target that has no path, as that of `CONNECT`.
    Path(Option<PathAndQuery>),
}

impl Name {
    pub(super) fn fixed(name: Arc<str>) -> Self {
        Self { route: Route::Fixed(name), method: None }
    }

    pub(super) fn given(route: Cow<'static, str>, method: Option<Method>) -> Self {
        Self { route: Route::Given(route), method }
    }

    pub(super) fn by_path(head: &Head<'_>) -> Self {
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
            Route::Given(route) => route,
            #[cfg(feature = "axum")]
            Route::Matched(matched) => matched.as_str(),
            Route::Path(path) => path.as_ref().map_or("", PathAndQuery::path),
        }
    }

    pub(super) fn method(&self) -> Option<&Method> {
        self.method.as_ref()
    }

    /// `true` if the program has only so many of them, whatever clients send.
    #[cfg(feature = "metrics")]
    pub(super) fn is_bounded(&self) -> bool {
        match self.route {
            Route::Fixed(_) => true,
            #[cfg(feature = "axum")]
            Route::Matched(_) => true,
            Route::Given(_) | Route::Path(_) => false,
        }
    }
}
