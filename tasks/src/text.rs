//! What texts of others are made to be before they are kept.

/// At most so many bytes, cut between two characters, and without NUL, which Postgres refuses to keep.
pub(crate) fn clean(text: impl Into<String>, at_most: usize) -> String {
    let mut text = text.into();
    if text.contains('\0') {
        text = text.replace('\0', "\u{fffd}");
    }
    if text.len() > at_most {
        let end = (0..=at_most).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::clean;

    proptest! {
        #[test]
        fn a_clean_text_is_short_has_no_nul_and_is_clean(text in "[\0-\u{ffff}]{0,40}", at_most in 0_usize..40) {
            let cleaned = clean(text.as_str(), at_most);
            prop_assert!(cleaned.len() <= at_most && !cleaned.contains('\0'));
            prop_assert_eq!(clean(cleaned.clone(), at_most), cleaned.clone());
            if text.len() <= at_most && !text.contains('\0') {
                prop_assert_eq!(cleaned, text);
            }
        }
    }
}
