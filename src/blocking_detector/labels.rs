use std::collections::HashSet;

use crate::sync::{Mutex, lock};

/// Limits the number of time series that clients can create.
const MAX_LABELS: usize = 100;

/// Limits the memory of one label, because a client can make up a path of any length.
const MAX_LABEL_LEN: usize = 256;

/// Routes chosen by clients that have become label values. Their number is limited because a
/// recorder keeps every label value forever.
#[derive(Debug, Default)]
pub(super) struct Labels {
    known: Mutex<HashSet<Box<str>>>,
}

impl Labels {
    /// Returns `route`, or `other` if one of the limits is exceeded.
    pub(super) fn bounded<'a>(&self, route: &'a str) -> &'a str {
        let mut known = lock(&self.known);
        let fits = known.contains(route)
            || known.len() < MAX_LABELS
                && route.len() <= MAX_LABEL_LEN
                && known.insert(route.to_owned().into_boxed_str());
        if fits { route } else { "other" }
    }
}
