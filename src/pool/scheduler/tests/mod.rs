mod fair;
mod queue;
mod shedding;
mod state;
