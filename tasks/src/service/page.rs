use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY},
};

use super::{
    problem::Problem,
    respond::{Answer, text_of, vary_by_accept},
};

/// With its script and style in it, so that there is nothing to build or to serve beside it.
const PAGE: &str = include_str!("page.html");
const NONCE: &str = "{{nonce}}";

/// The page. Its own script and style have a number that is used once, and the browser runs no others.
pub(super) fn answer() -> Answer {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the system has no random bytes").into_response();
    }
    let nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut answer = text_of("text/html; charset=utf-8", PAGE.replace(NONCE, &nonce).into());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy: Option<(HeaderName, HeaderValue)> =
        HeaderValue::try_from(policy).ok().map(|policy| (CONTENT_SECURITY_POLICY, policy));
    answer.headers_mut().extend(policy);
    answer.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    vary_by_accept(&mut answer);
    answer
}
