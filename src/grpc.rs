//! What layers have to know of gRPC.

use http::{HeaderMap, header::CONTENT_TYPE};

/// Whether a message is one of gRPC: `application/grpc`, `application/grpc+proto`, `application/grpc;..`; but not
/// `application/grpc-web`, whose trailers stand in the body.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    matches!(content_type, Some([] | [b'+' | b';' | b' ', ..]))
}
