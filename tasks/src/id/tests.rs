#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use proptest::prelude::*;

use super::{CHARACTERS, TaskId};
use crate::Timestamp;

proptest! {
    #[test]
    fn an_id_is_read_as_it_was_written_and_sorts_as_its_text(one: [u8; 22], other: [u8; 22]) {
        let (one, other) = (TaskId::from_bytes(one), TaskId::from_bytes(other));
        prop_assert_eq!(one.to_string().parse(), Ok(one));
        prop_assert_eq!(one.to_string().len(), CHARACTERS);
        prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
    }

    #[test]
    fn a_text_that_is_read_is_written_the_same(text in "[0-9a-zA-Z]{36}|[01][0-9a-hjkmnp-tv-z]{35}|\\PC{0,40}") {
        if let Ok(id) = text.parse::<TaskId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }
}

#[test]
fn ids_of_one_moment_differ_and_those_of_a_later_one_sort_behind() {
    let (early, late) = (Timestamp::from_millis(1), Timestamp::from_millis(2));
    let ids: HashSet<_> = (0..1000).map(|_| TaskId::random(early).unwrap()).collect();
    assert_eq!(ids.len(), 1000);
    assert!(ids.iter().max() < Some(&TaskId::random(late).unwrap()));
}
