//! The servers that are compared, as data.

use crate::{BoxError, filter};

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

/// See there; and always the plain one.
pub(crate) fn matching(filters: &[String]) -> Result<Vec<Variant>, BoxError> {
    let mut variants = filter::matching(VARIANTS, |variant| variant.name, filters)?;
    if !variants.iter().any(|variant| variant.name == PLAIN) {
        variants.insert(0, VARIANTS[0]);
    }
    Ok(variants)
}
