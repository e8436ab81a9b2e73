use tower_layer::Layer;

use super::AfterResponseService;
use crate::background::Background;

/// Gives each request an [`AfterResponse`](super::AfterResponse) handle, to register work that runs
/// after its response.
///
/// See the [module docs](self::super).
#[derive(Debug, Clone)]
pub struct AfterResponseLayer {
    background: Background,
}

impl AfterResponseLayer {
    /// Creates a layer whose tasks run in `background`. Keep a clone of the background, to [shut it
    /// down](Background::shutdown) when the server stops.
    pub fn new(background: Background) -> Self {
        Self { background }
    }

    /// Returns the background in which tasks run.
    pub fn background(&self) -> &Background {
        &self.background
    }
}

impl<S> Layer<S> for AfterResponseLayer {
    type Service = AfterResponseService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AfterResponseService::new(inner, self.background.clone())
    }
}
