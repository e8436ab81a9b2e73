use std::fmt;

use http::{Extensions, HeaderMap, Method, Request, Uri, Version};

/// All of an HTTP request but its body: what closures of the layers look at, as those of
/// [`filter`](crate::OffloadLayer::filter), [`priority`](crate::OffloadLayer::priority) and
/// [`carry`](crate::OffloadLayer::carry) do.
///
/// Not generic over the body, so that a closure's argument needs no type annotation.
pub struct Head<'a> {
    method: &'a Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> Head<'a> {
    /// The head of a request.
    pub fn new<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }

    /// The method.
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The target. In a nested axum router it lacks the prefix, as the handler sees it.
    pub fn uri(&self) -> &'a Uri {
        self.uri
    }

    /// The protocol version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The header fields.
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// What outer layers attached to the request.
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }
}

impl fmt::Debug for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("method", self.method)
            .field("uri", self.uri)
            .field("version", &self.version)
            .field("headers", self.headers)
            .finish_non_exhaustive()
    }
}
