/// A server implementation and a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stack {
    /// hyper-util's `auto`, HTTP/1.
    AutoHttp1,
    /// hyper-util's `auto`, HTTP/2 by prior knowledge.
    AutoHttp2,
    /// `tower_offload::axum::serve`, or axum's own if untracked, HTTP/1.
    AxumHttp1,
    /// Like `AxumHttp1`, HTTP/2 by prior knowledge.
    AxumHttp2,
    /// hyper's `http1`.
    HyperHttp1,
    /// hyper's `http2`.
    HyperHttp2,
    /// `auto` over TLS, HTTP/1 by ALPN.
    TlsHttp1,
    /// `auto` over TLS, HTTP/2 by ALPN.
    TlsHttp2,
}

pub(crate) const PLAIN_HTTP1: &[Stack] = &[Stack::HyperHttp1, Stack::AutoHttp1, Stack::AxumHttp1];
pub(crate) const PLAIN_HTTP2: &[Stack] = &[Stack::HyperHttp2, Stack::AutoHttp2, Stack::AxumHttp2];
pub(crate) const HTTP1: &[Stack] = &[Stack::HyperHttp1, Stack::AutoHttp1, Stack::AxumHttp1, Stack::TlsHttp1];
pub(crate) const HTTP2: &[Stack] = &[Stack::HyperHttp2, Stack::AutoHttp2, Stack::AxumHttp2, Stack::TlsHttp2];
pub(crate) const ALL: &[Stack] = &[
    Stack::HyperHttp1,
    Stack::AutoHttp1,
    Stack::AxumHttp1,
    Stack::TlsHttp1,
    Stack::HyperHttp2,
    Stack::AutoHttp2,
    Stack::AxumHttp2,
    Stack::TlsHttp2,
];

impl Stack {
    pub(crate) fn is_axum(self) -> bool {
        matches!(self, Self::AxumHttp1 | Self::AxumHttp2)
    }

    pub(crate) fn is_http2(self) -> bool {
        HTTP2.contains(&self)
    }

    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::TlsHttp1 | Self::TlsHttp2)
    }
}
