//! Which variants are to be measured.

use crate::BoxError;

/// Those that any of the filters names, by the whole name or else by a part of it, in their order. All of them without a filter.
pub(crate) fn matching<V: Copy>(all: &[V], name: fn(&V) -> &str, filters: &[String]) -> Result<Vec<V>, BoxError> {
    let names = |variant: &V, filter: &str| {
        if all.iter().any(|other| name(other) == filter) {
            name(variant) == filter
        } else {
            name(variant).contains(filter)
        }
    };
    for filter in filters {
        if !all.iter().any(|variant| names(variant, filter)) {
            let all: Vec<_> = all.iter().map(name).collect();
            return Err(format!("no variant is named like `{filter}`; there are {}", all.join(", ")).into());
        }
    }
    let wanted = |variant: &&V| filters.is_empty() || filters.iter().any(|filter| names(variant, filter));
    Ok(all.iter().filter(wanted).copied().collect())
}
