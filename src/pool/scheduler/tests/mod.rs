mod queue;
mod shedding;
mod state;
