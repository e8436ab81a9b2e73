use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use crate::service::negotiate::{PREFER, Prefer};

fn parse(fields: &[&[u8]]) -> Prefer {
    let fields = fields.iter().filter_map(|field| HeaderValue::from_bytes(field).ok());
    Prefer::parse(&fields.map(|field| (PREFER, field)).collect::<HeaderMap>())
}

fn wait(field: &str) -> Option<u64> {
    parse(&[field.as_bytes()]).wait.map(|wait| wait.as_secs())
}

#[test]
fn preferences_are_parsed_according_to_the_rfc() {
    assert_eq!(wait("respond-async, wait=100"), Some(100));
    assert_eq!(wait("Wait = \"7\"; strict ;a=\"b,wait=9\", foo"), Some(7));
    assert_eq!(wait("return=\"a,wait=1\\\",wait=2\", wait=3"), Some(3));
    assert_eq!(wait("wait=1, wait=2"), Some(1));
    assert_eq!(wait("wait=99999999999999999999999"), Some(u64::from(u32::MAX)));
    for none in ["", "wait", "wait=", "wait=-1", "wait=1.5", "wait=\"1", "wait=1 2", "wa it=1", "x;wait=1", ",;=,"] {
        assert_eq!(wait(none), None, "{none:?}");
    }
    assert!(parse(&[b"foo", b"RESPOND-ASYNC ; x=1"]).respond_async);
    assert!(!parse(&[b"respond-asynchronously"]).respond_async);
}

proptest! {
    #[test]
    fn quoted_text_does_not_affect_later_preferences(
        noise in proptest::collection::vec(any::<u8>(), 0..60), text in "[^\"\\\\\\pC]{0,20}", seconds in 0_u32..
    ) {
        let _ = parse(&[&noise]);
        prop_assert_eq!(wait(&format!("foo=\"{text}\" ; bar=\"{text}\" , wait={seconds}")), Some(u64::from(seconds)));
    }
}

#[cfg(feature = "page")]
mod accept {
    use http::header::ACCEPT;

    use super::*;
    use crate::service::negotiate::prefers_html;

    fn html(field: &str) -> bool {
        HeaderValue::from_str(field).is_ok_and(|field| prefers_html(&HeaderMap::from_iter([(ACCEPT, field)])))
    }

    #[test]
    fn html_is_preferred_only_if_it_is_named() {
        assert!(html("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"));
        assert!(html("TEXT/HTML") && html("text/*") && html("application/json;q=0.5, text/html;level=1;q=0.6"));
        assert!(!prefers_html(&HeaderMap::new()));
        for json in [
            "*/*",
            "application/json",
            "text/html;q=0.1, application/json;q=0.2",
            "text/html;q=0",
            "text/html;q=x",
            "",
            ",;/",
        ] {
            assert!(!html(json), "{json:?}");
        }
    }

    proptest! {
        #[test]
        fn any_accept_field_is_parsed(field in "[ -~]{0,60}") {
            let _ = html(&field);
        }
    }
}
