use std::sync::LazyLock;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{ACCEPT, CONTENT_SECURITY_POLICY, REFERRER_POLICY},
};

use super::response::{Response, uncached, vary_by};
use crate::problem::Problem;

/// The HTML page. It contains its script and its style, so it needs no build step and no other
/// resources.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("page.html").replace(STYLE, include_str!("page.css")).replace(SCRIPT, &SCRIPTS.join("\n"))
});

/// The parts of the script, in the order of their evaluation. They are one module with one scope.
const SCRIPTS: [&str; 7] = [
    include_str!("http.js"),
    include_str!("view.js"),
    include_str!("actions.js"),
    include_str!("list.js"),
    include_str!("task.js"),
    include_str!("queues.js"),
    include_str!("main.js"),
];

const STYLE: &str = "{{style}}";
const SCRIPT: &str = "{{script}}";
const ACCESS: &str = "{{access}}";
const NONCE: &str = "{{nonce}}";

/// Returns the page. A nonce per response permits its own script and style, and no others. The page
/// of a service that is read-only has no controls.
pub(super) fn respond(is_read_only: bool) -> Response {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        let message = "the system has no random numbers";
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message).into_response();
    }
    let nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let page = PAGE.replace(NONCE, &nonce).replace(ACCESS, if is_read_only { "read-only" } else { "full" });
    let mut response = uncached("text/html; charset=utf-8", Bytes::from(page));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'"
    );
    let policy: Option<(HeaderName, HeaderValue)> =
        HeaderValue::try_from(policy).ok().map(|policy| (CONTENT_SECURITY_POLICY, policy));
    response.headers_mut().extend(policy);
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    vary_by(&mut response, ACCEPT);
    response
}
