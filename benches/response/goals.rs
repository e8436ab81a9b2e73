//! The figures that are meant to be reached, as data. A row stays, whatever comes out.

use crate::{
    plan::Protocol,
    rows::{Table, cpu_us},
    spread::Spread,
};

/// What a variant may cost a response on a protocol beyond the plain server, in microseconds of CPU time. Less is better.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) name: &'static str,
    variant: &'static str,
    protocol: Protocol,
    pub(crate) must: f64,
    pub(crate) aim: f64,
}

impl Goal {
    const fn hook(name: &'static str, protocol: Protocol) -> Self {
        Self { name, variant: "tracked+hook", protocol, must: 2.0, aim: 0.5 }
    }

    /// None if it was not measured.
    pub(crate) fn measured(&self, tables: &[Table]) -> Option<Spread> {
        let table = self.table(tables)?;
        table.extra(table.row(self.variant)?, cpu_us)
    }

    pub(crate) fn is_disturbed(&self, tables: &[Table]) -> bool {
        self.table(tables).is_some_and(|table| !table.is_undisturbed())
    }

    pub(crate) fn verdict(&self, measured: f64) -> &'static str {
        match measured {
            measured if measured <= self.aim => "aim met",
            measured if measured <= self.must => "must met",
            _ => "NOT MET",
        }
    }

    fn table<'a>(&self, tables: &'a [Table]) -> Option<&'a Table> {
        tables.iter().find(|table| table.protocol == self.protocol)
    }
}

pub(crate) const GOALS: &[Goal] = &[
    Goal::hook("hook on a tracked connection, http1, us", Protocol::Http1),
    Goal::hook("hook on a tracked connection, http1/pipelined, us", Protocol::Http1Pipelined),
    Goal::hook("hook on a tracked connection, http2, us", Protocol::Http2),
];
