use std::sync::Arc;

use super::exchange::Exchange;

/// In the extensions of a request: the connection owns its response, and the layer has only to hand out the handle.
#[derive(Debug, Clone)]
pub(crate) struct Tracked(pub(crate) Arc<Exchange>);
