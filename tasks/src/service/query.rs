//! The query of a target, by the rules of HTML forms.

/// Names and values, in order. `None` if it is not what a form would send: a `%` without two hexadecimal digits, or no UTF-8.
pub(super) fn parse(query: &str) -> Option<Vec<(String, String)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        })
        .collect()
}

fn decode(text: &str) -> Option<String> {
    let (mut decoded, mut bytes) = (Vec::with_capacity(text.len()), text.bytes());
    let digit = |byte: u8| char::from(byte).to_digit(16);
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => (digit(bytes.next()?)? * 16 + digit(bytes.next()?)?) as u8,
            b'+' => b' ',
            _ => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

/// As a value, so that [`parse`] gives it back, and it can stand in a header between `<` and `>`.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::{encode, parse};

    #[test]
    fn what_no_form_sends_is_refused() {
        for bad in ["a=%", "a=%4", "a=%zz", "%ff=1", "a=%C3", "a=%+1"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(parse("&a=b+c%21&d&&"), Some(vec![("a".into(), "b c!".into()), ("d".into(), String::new())]));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_as_it_was(text in "\\PC{0,30}", other in "[%0-9a-f+&=x]{0,20}") {
            prop_assert_eq!(parse(&format!("a={}", encode(&text))), Some(vec![("a".to_owned(), text)]));
            let _ = parse(&other);
        }
    }
}
