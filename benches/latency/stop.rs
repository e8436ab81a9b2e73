//! Ctrl-C.

use std::{sync::Arc, thread};

use tokio::{runtime, sync::watch};

use crate::latency::BoxError;

/// Whether the user wants the session to end. Clones are the same wish.
#[derive(Debug, Clone)]
pub(crate) struct Stop(Arc<watch::Sender<bool>>);

impl Stop {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// The first Ctrl-C unwinds, which ends the servers. A second one ends this process; the servers see their input close.
    pub(crate) fn on_interrupt(&self) -> Result<(), BoxError> {
        let stop = self.clone();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            runtime.block_on(async {
                if tokio::signal::ctrl_c().await.is_err() {
                    return;
                }
                stop.0.send_replace(true);
                let _ = tokio::signal::ctrl_c().await;
                std::process::exit(130);
            });
        })?;
        Ok(())
    }

    pub(crate) fn is_wanted(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is wanted.
    pub(crate) async fn wanted(&self) {
        // An error would say that the sender is gone, and `self` holds it.
        let _ = self.0.subscribe().wait_for(|wanted| *wanted).await;
    }
}
