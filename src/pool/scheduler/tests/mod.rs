mod fair;
mod queue;
mod state;
