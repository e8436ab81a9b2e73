//! Previous names, until every caller is renamed.
#![allow(missing_docs)]

use std::time::Duration;

use super::{
    Background, BackgroundBuilder, BackgroundShutdownReport, Reservation, SubmitError, TaskBuilder, TaskHandle,
    TaskOutput,
};

pub type Builder = BackgroundBuilder;
pub type Rejected = SubmitError;
pub type Stats = super::BackgroundStats;

impl Background {
    #[doc(hidden)]
    pub fn run<F, T>(&self, work: F) -> Result<TaskHandle, SubmitError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.spawn_blocking(work)
    }

    #[doc(hidden)]
    pub async fn drain(&self, timeout: Duration) -> BackgroundShutdownReport {
        self.shutdown(timeout).await
    }
}

impl BackgroundBuilder {
    #[doc(hidden)]
    pub fn queue_capacity(self, max_tasks: usize) -> Self {
        self.max_tasks(max_tasks)
    }
}

impl TaskBuilder<'_> {
    #[doc(hidden)]
    pub fn run<F, T>(self, work: F) -> Result<TaskHandle, SubmitError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.spawn_blocking(work)
    }
}

impl Reservation {
    #[doc(hidden)]
    pub fn run<F, T>(self, work: F) -> TaskHandle
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.spawn_blocking(work)
    }
}
