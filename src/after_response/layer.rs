use tower_layer::Layer;

use super::AfterResponseService;
use crate::background::Background;

/// Gives each request an [`AfterResponse`](super::AfterResponse), to register what is to run after its response.
///
/// See the [module docs](self::super).
#[derive(Debug, Clone, Default)]
pub struct AfterResponseLayer {
    background: Background,
}

impl AfterResponseLayer {
    /// Tasks run in that background. Keep a clone, to [drain](Background::drain) it at shutdown.
    ///
    /// The default makes one of its own, which nobody can drain.
    pub fn new(background: Background) -> Self {
        Self { background }
    }

    /// Where tasks run.
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
