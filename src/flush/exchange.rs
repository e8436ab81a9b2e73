//! A response as the connection knows it is an exchange, and an exchange knows its connection as a wire.

use std::sync::Arc;

use http::Request;

use super::{
    connection::{Connection, Response},
    frames::StreamId,
};
use crate::after_response::{Exchange, Guard, RequestLine, Tracked, Verdict, Wire};

/// Takes up a request that came on this connection, as this stream if that is known. The layer finds the exchange in the
/// request's extensions.
pub(crate) fn begin<B>(connection: &Arc<Connection>, stream: Option<StreamId>, request: &mut Request<B>) -> Guard {
    let line = RequestLine::new(request);
    let exchange = Arc::new(Exchange::tracked(line, connection.clone(), stream.map(StreamId::get)));
    connection.begin(line.version, stream, &exchange);
    request.extensions_mut().insert(Tracked(exchange.clone()));
    Guard::new(exchange, line)
}

impl Response for Exchange {
    fn told(self: Arc<Self>, verdict: Verdict) {
        Self::told(&self, verdict);
    }
}

impl Wire for Connection {
    fn head_ready(&self) {
        self.head_ready();
    }

    fn body_dropped(&self) {
        self.body_dropped();
    }

    fn await_flush(&self, exchange: Arc<Exchange>) {
        self.await_flush(exchange);
    }

    fn ends_with_head(&self, stream: u32) {
        self.ends_with_head(StreamId::new(stream));
    }

    fn mismatched(&self) {
        self.mismatched();
    }
}
