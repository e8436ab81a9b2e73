use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a client would like, by [RFC 7240](https://www.rfc-editor.org/rfc/rfc7240). What is not understood is left out, as it says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Prefer {
    /// An answer at once rather than the result.
    pub(crate) respond_async: bool,
    /// For how long it would wait for the result.
    pub(crate) wait: Option<Duration>,
}

impl Prefer {
    /// Of all fields of that name. Of a preference that is there more than once the first counts.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
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

/// Says which preferences were followed, if any.
pub(super) fn note_applied(headers: &mut HeaderMap, applied: impl IntoIterator<Item = String>) {
    let applied: Vec<_> = applied.into_iter().collect();
    let value = HeaderValue::try_from(applied.join(", ")).ok().filter(|value| !value.is_empty());
    headers.extend(value.map(|value| (PREFERENCE_APPLIED, value)));
}

/// A number too large is a very long time.
fn seconds(digits: &[u8]) -> Option<Duration> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds =
        digits.iter().fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    Some(Duration::from_secs(seconds.min(u64::from(u32::MAX))))
}

/// Names and values of one field. A comma in a quoted text separates nothing.
fn preferences(field: &[u8]) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
    split(field, b',').into_iter().filter_map(|preference| {
        let first = *split(preference, b';').first()?; // what follows are its parameters
        let (name, value) = match first.iter().position(|byte| *byte == b'=') {
            Some(place) => (&first[..place], unquote(first[place + 1..].trim_ascii())?),
            None => (first, Vec::new()),
        };
        let name = name.trim_ascii();
        (!name.is_empty() && name.iter().all(is_token)).then_some((name, value))
    })
}

fn split(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut start, mut is_quoted, mut is_escaped) = (Vec::new(), 0, false, false);
    for (place, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ if *byte == separator && !is_quoted => {
                parts.push(&text[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// A token as it is, a quoted text without its quotes. `None` if it is neither.
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

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(fields: &[&[u8]]) -> Prefer {
        let fields = fields.iter().filter_map(|field| HeaderValue::from_bytes(field).ok());
        Prefer::read(&fields.map(|field| (PREFER, field)).collect())
    }

    fn wait(field: &str) -> Option<u64> {
        read(&[field.as_bytes()]).wait.map(|wait| wait.as_secs())
    }

    #[test]
    fn preferences_are_read_as_the_rfc_writes_them() {
        assert_eq!(wait("respond-async, wait=100"), Some(100));
        assert_eq!(wait("Wait = \"7\"; strict ;a=\"b,wait=9\", foo"), Some(7));
        assert_eq!(wait("return=\"a,wait=1\\\",wait=2\", wait=3"), Some(3));
        assert_eq!(wait("wait=1, wait=2"), Some(1));
        assert_eq!(wait("wait=99999999999999999999999"), Some(u64::from(u32::MAX)));
        for none in ["", "wait", "wait=", "wait=-1", "wait=1.5", "wait=\"1", "wait=1 2", "wa it=1", "x;wait=1", ",;=,"]
        {
            assert_eq!(wait(none), None, "{none:?}");
        }
        assert!(read(&[b"foo", b"RESPOND-ASYNC ; x=1"]).respond_async);
        assert!(!read(&[b"respond-asynchronously"]).respond_async);
    }

    proptest! {
        #[test]
        fn any_field_is_read_and_what_stands_before_it_in_quotes_changes_nothing(
            noise in proptest::collection::vec(any::<u8>(), 0..60), text in "[^\"\\\\\\pC]{0,20}", seconds in 0_u32..
        ) {
            let _ = read(&[&noise]);
            prop_assert_eq!(wait(&format!("foo=\"{text}\" ; bar=\"{text}\" , wait={seconds}")), Some(u64::from(seconds)));
        }
    }
}
