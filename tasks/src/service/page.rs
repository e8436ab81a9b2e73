use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{ACCEPT, CONTENT_SECURITY_POLICY, REFERRER_POLICY},
};

use super::response::{Response, uncached, vary_by};
use crate::problem::Problem;

/// The HTML page. It contains its script and its style, so it needs no build step and no other
/// resources.
const PAGE: &str = include_str!("page.html");
const NONCE: &str = "{{nonce}}";

/// Returns the page. A nonce per response permits its own script and style, and no others.
pub(super) fn respond() -> Response {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        let message = "the system has no random numbers";
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message).into_response();
    }
    let nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut response = uncached("text/html; charset=utf-8", Bytes::from(PAGE.replace(NONCE, &nonce)));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy: Option<(HeaderName, HeaderValue)> =
        HeaderValue::try_from(policy).ok().map(|policy| (CONTENT_SECURITY_POLICY, policy));
    response.headers_mut().extend(policy);
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    vary_by(&mut response, ACCEPT);
    response
}
