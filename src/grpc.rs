//! Recognition of gRPC messages.

use http::{HeaderMap, header::CONTENT_TYPE};

/// Returns `true` if the content type is that of gRPC: `application/grpc`,
/// `application/grpc+proto`, `application/grpc;..`.
///
/// `application/grpc-web` is not gRPC: its trailers are part of the body.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    matches!(content_type, Some([] | [b'+' | b';' | b' ', ..]))
}
