//! Supervisors with real workers and real signals.

mod endings;
mod load;
mod program;
mod reload;
mod start;
