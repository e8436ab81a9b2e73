//! Preferences of the client: the `Accept` and `Prefer` headers.

use std::time::Duration;

#[cfg(feature = "page")]
use http::header::ACCEPT;
use http::{HeaderMap, HeaderName, HeaderValue};

pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Returns `true` if the client prefers HTML to JSON. Browsers name HTML in `Accept`; a client that
/// accepts anything gets JSON.
#[cfg(feature = "page")]
pub(super) fn prefers_html(headers: &HeaderMap) -> bool {
    let fields: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|field| field.to_str().ok()).collect();
    let ranges: Vec<_> = fields.iter().flat_map(|field| field.split(',')).filter_map(media_range).collect();
    let quality = |kind: &str, subtype: &str| {
        // The most specific range that matches determines the quality.
        [(kind, subtype), (kind, "*"), ("*", "*")].into_iter().find_map(|wanted| {
            let mut matching = ranges.iter().filter(|(kind, subtype, _)| {
                kind.eq_ignore_ascii_case(wanted.0) && subtype.eq_ignore_ascii_case(wanted.1)
            });
            matching.next().map(|(.., quality)| *quality)
        })
    };
    let (html, json) = (quality("text", "html").unwrap_or(0), quality("application", "json").unwrap_or(0));
    html > json
}

/// Parses a media range into type, subtype, and quality in thousandths.
#[cfg(feature = "page")]
fn media_range(text: &str) -> Option<(&str, &str, u32)> {
    let mut parts = text.split(';').map(str::trim);
    let (kind, subtype) = parts.next()?.split_once('/')?;
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let quality = match quality {
        None => 1000,
        Some(text) => (text.parse::<f32>().ok().filter(|value| (0.0..=1.0).contains(value))? * 1000.0) as u32,
    };
    Some((kind, subtype, quality))
}

/// Preferences from `Prefer` ([RFC 7240](https://www.rfc-editor.org/rfc/rfc7240)). Preferences that
/// are unknown or not valid are ignored, as the RFC requires.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Prefer {
    /// The client prefers an immediate response to the result.
    pub(super) respond_async: bool,
    /// How long the client is willing to wait for the result.
    pub(super) wait: Option<Duration>,
}

impl Prefer {
    /// Parses all `Prefer` headers. If a preference occurs more than once, the first one counts.
    pub(super) fn parse(headers: &HeaderMap) -> Self {
        let mut prefer = Self::default();
        let mut has_wait = false;
        for field in headers.get_all(PREFER) {
            for (name, value) in preferences(field.as_bytes()) {
                if name.eq_ignore_ascii_case(b"respond-async") {
                    prefer.respond_async = true;
                } else if name.eq_ignore_ascii_case(b"wait") && !has_wait {
                    (has_wait, prefer.wait) = (true, seconds(&value));
                }
            }
        }
        prefer
    }
}

/// Sets `Preference-Applied`, if any preference was applied.
pub(super) fn set_preference_applied(headers: &mut HeaderMap, applied: impl IntoIterator<Item = String>) {
    let applied: Vec<_> = applied.into_iter().collect();
    let value = HeaderValue::try_from(applied.join(", ")).ok().filter(|value| !value.is_empty());
    headers.extend(value.map(|value| (PREFERENCE_APPLIED, value)));
}

/// Parses a number of seconds. Saturates on overflow.
fn seconds(digits: &[u8]) -> Option<Duration> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds =
        digits.iter().fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    Some(Duration::from_secs(seconds.min(u64::from(u32::MAX))))
}

/// Returns the names and values of the preferences in one header. The parameters after a `;` are
/// ignored.
fn preferences(field: &[u8]) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
    split(field, b',').into_iter().filter_map(|preference| {
        let first = *split(preference, b';').first()?;
        let (name, value) = match first.iter().position(|byte| *byte == b'=') {
            Some(index) => (&first[..index], unquote(first[index + 1..].trim_ascii())?),
            None => (first, Vec::new()),
        };
        let name = name.trim_ascii();
        (!name.is_empty() && name.iter().all(is_token)).then_some((name, value))
    })
}

/// Splits at each `separator` outside of quoted strings.
fn split(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut start, mut is_quoted, mut is_escaped) = (Vec::new(), 0, false, false);
    for (index, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ if *byte == separator && !is_quoted => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Returns the value of a token or of a quoted string. Returns `None` if it is neither.
fn unquote(value: &[u8]) -> Option<Vec<u8>> {
    let Some(rest) = value.strip_prefix(b"\"") else {
        return value.iter().all(is_token).then(|| value.to_vec());
    };
    let (mut text, mut bytes) = (Vec::new(), rest.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return bytes.next().is_none().then_some(text),
            b'\\' => text.push(*bytes.next()?),
            _ => text.push(*byte),
        }
    }
    None
}

fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}
