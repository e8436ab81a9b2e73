use std::collections::HashSet;

use crate::sync::{Mutex, lock};

/// More time series than this are a burden, not a help.
const MOST: usize = 100;

/// No route of a program's own is as long; what a client makes up may be.
const LONGEST: usize = 256;

/// Which routes that clients can make up have become label values: a recorder keeps every one for ever.
#[derive(Debug, Default)]
pub(super) struct Labels {
    known: Mutex<HashSet<Box<str>>>,
}

impl Labels {
    /// The route, or `other` if it is one too many.
    pub(super) fn bounded<'a>(&self, route: &'a str) -> &'a str {
        let mut known = lock(&self.known);
        let fits = known.contains(route)
            || known.len() < MOST && route.len() <= LONGEST && known.insert(route.to_owned().into_boxed_str());
        if fits { route } else { "other" }
    }
}
