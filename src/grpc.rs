//! Recognition of gRPC messages.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

/// Returns `true` if the content type is that of gRPC: `application/grpc`,
/// `application/grpc+proto`, `application/grpc;..`.
///
/// `application/grpc-web` is not gRPC: its trailers are part of the body.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    matches!(content_type, Some([] | [b'+' | b';' | b' ', ..]))
}

/// Returns the value of `grpc-timeout`: up to eight digits and a unit ([gRPC over HTTP/2]). Of
/// several values, the shortest one.
///
/// A malformed value is ignored, as tonic and the C core do: the client then has no timeout, which
/// is what a client gets that sends no value.
///
/// [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get_all("grpc-timeout").iter().filter_map(parse_timeout).min()
}

fn parse_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Eight digits of hours are 3.6e11 seconds, so no unit overflows.
    let value = digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(value * 3600)),
        b'M' => Some(Duration::from_secs(value * 60)),
        b'S' => Some(Duration::from_secs(value)),
        b'm' => Some(Duration::from_millis(value)),
        b'u' => Some(Duration::from_micros(value)),
        b'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    fn timeout_of(values: &[&[u8]]) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("grpc-timeout", HeaderValue::from_bytes(value).expect("a header value"));
        }
        timeout(&headers)
    }

    #[test]
    fn grpc_timeout_has_up_to_eight_digits_and_a_unit() {
        let hour = Duration::from_secs(3600);
        for (value, expected) in [
            ("2H", 2 * hour),
            ("3M", Duration::from_secs(180)),
            ("4S", Duration::from_secs(4)),
            ("5m", Duration::from_millis(5)),
            ("6u", Duration::from_micros(6)),
            ("7n", Duration::from_nanos(7)),
            ("0n", Duration::ZERO),
            ("00000001S", Duration::from_secs(1)),
            ("99999999H", 99_999_999 * hour),
        ] {
            assert_eq!(timeout_of(&[value.as_bytes()]), Some(expected), "{value}");
        }
    }

    #[test]
    fn malformed_grpc_timeout_is_ignored() {
        let malformed: [&[u8]; 14] = [
            b"",
            b"S",
            b"1",
            b"1s",
            b"1h",
            b"+1S",
            b"-1S",
            b" 1S",
            b"1 S",
            b"1.5S",
            b"123456789n",
            b"1S,2S",
            b"1\xc2\xb5",
            b"\xff\xffS",
        ];
        for value in malformed {
            assert_eq!(timeout_of(&[value]), None, "{value:?}");
        }
        assert_eq!(timeout_of(&[]), None);
    }

    #[test]
    fn shortest_of_several_grpc_timeouts_counts() {
        assert_eq!(timeout_of(&[b"10S", b"5S", b"never"]), Some(Duration::from_secs(5)));
    }
}
