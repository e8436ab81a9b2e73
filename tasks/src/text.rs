//! Sanitizes user-supplied strings before they are stored.

/// Replaces NUL, which Postgres rejects, by U+FFFD, and truncates the text to at most `max_bytes`
/// bytes at a character boundary.
pub(crate) fn sanitize(text: impl Into<String>, max_bytes: usize) -> String {
    let mut text = text.into();
    if text.contains('\0') {
        text = text.replace('\0', "\u{fffd}");
    }
    if text.len() > max_bytes {
        let end = (0..=max_bytes).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::sanitize;

    proptest! {
        #[test]
        fn sanitized_text_is_short_without_nul_and_stable(
            text in "[\0-\u{ffff}]{0,40}",
            max_bytes in 0_usize..40,
        ) {
            let sanitized = sanitize(text.as_str(), max_bytes);
            prop_assert!(sanitized.len() <= max_bytes && !sanitized.contains('\0'));
            prop_assert_eq!(sanitize(sanitized.clone(), max_bytes), sanitized.clone());
            if text.len() <= max_bytes && !text.contains('\0') {
                prop_assert_eq!(sanitized, text);
            }
        }
    }
}
