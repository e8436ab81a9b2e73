//! The servers that are compared, as data.

use crate::BoxError;

/// One way to serve.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// Whether the connection is tracked.
    pub(crate) tracked: bool,
    /// Whether the service is in an `AfterResponseLayer`.
    pub(crate) layer: bool,
    pub(crate) registers: Registers,
}

/// What the handler registers for each response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registers {
    Hook,
    Nothing,
    /// On the pool of the background.
    Run,
    /// On the runtime.
    Spawn,
}

/// What the others are compared with.
pub(crate) const PLAIN: &str = "plain";

const VARIANTS: &[Variant] = &[
    Variant { name: PLAIN, tracked: false, layer: false, registers: Registers::Nothing },
    Variant { name: "layer", tracked: false, layer: true, registers: Registers::Nothing },
    Variant { name: "layer+hook", tracked: false, layer: true, registers: Registers::Hook },
    Variant { name: "tracked", tracked: true, layer: false, registers: Registers::Nothing },
    Variant { name: "tracked+layer", tracked: true, layer: true, registers: Registers::Nothing },
    Variant { name: "tracked+hook", tracked: true, layer: true, registers: Registers::Hook },
    Variant { name: "tracked+task", tracked: true, layer: true, registers: Registers::Spawn },
    Variant { name: "tracked+task/pool", tracked: true, layer: true, registers: Registers::Run },
];

pub(crate) fn named(name: &str) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| variant.name == name)
}

/// The variants that any of the filters names, by the whole name or else by a part of it; and always the plain one. All of them
/// without a filter.
pub(crate) fn matching(filters: &[String]) -> Result<Vec<Variant>, BoxError> {
    let names = |variant: &Variant, filter: &str| {
        if named(filter).is_some() { variant.name == filter } else { variant.name.contains(filter) }
    };
    for filter in filters {
        if !VARIANTS.iter().any(|variant| names(variant, filter)) {
            let all: Vec<_> = VARIANTS.iter().map(|variant| variant.name).collect();
            return Err(format!("no variant is named like `{filter}`; there are {}", all.join(", ")).into());
        }
    }
    let wanted = |variant: &&Variant| {
        filters.is_empty() || variant.name == PLAIN || filters.iter().any(|filter| names(variant, filter))
    };
    Ok(VARIANTS.iter().filter(wanted).copied().collect())
}
