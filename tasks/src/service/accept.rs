use http::{HeaderMap, header::ACCEPT};

/// Whether a client would rather have HTML than JSON. Browsers ask for HTML by name; whoever takes anything gets JSON.
pub(super) fn prefers_html(headers: &HeaderMap) -> bool {
    let fields: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|field| field.to_str().ok()).collect();
    let ranges: Vec<_> = fields.iter().flat_map(|field| field.split(',')).filter_map(range).collect();
    let quality = |kind: &str, subtype: &str| {
        // the most specific range that fits counts
        [(kind, subtype), (kind, "*"), ("*", "*")].into_iter().find_map(|wanted| {
            let mut fitting = ranges.iter().filter(|(kind, subtype, _)| {
                kind.eq_ignore_ascii_case(wanted.0) && subtype.eq_ignore_ascii_case(wanted.1)
            });
            fitting.next().map(|(.., quality)| *quality)
        })
    };
    let (html, json) = (quality("text", "html").unwrap_or(0), quality("application", "json").unwrap_or(0));
    html > json
}

/// Type, subtype, and quality in thousandths.
fn range(text: &str) -> Option<(&str, &str, u32)> {
    let mut parts = text.split(';').map(str::trim);
    let (kind, subtype) = parts.next()?.split_once('/')?;
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let quality = match quality {
        None => 1000,
        Some(text) => (text.parse::<f32>().ok().filter(|value| (0.0..=1.0).contains(value))? * 1000.0) as u32,
    };
    Some((kind, subtype, quality))
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn html(field: &str) -> bool {
        HeaderValue::from_str(field).is_ok_and(|field| prefers_html(&HeaderMap::from_iter([(ACCEPT, field)])))
    }

    #[test]
    fn html_is_for_those_who_ask_for_it() {
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
        fn any_field_is_read(field in "[ -~]{0,60}") {
            let _ = html(&field);
        }
    }
}
