//! `shutdown_signal`.

use std::process::Command;

use tower_offload::axum::shutdown_signal;

use crate::support::within;

#[tokio::test]
async fn sigint_and_sigterm_complete_the_shutdown_signal() {
    for name in ["INT", "TERM"] {
        let (mut signal, other) = (shutdown_signal().unwrap(), shutdown_signal().unwrap());
        assert!(futures_util::poll!(&mut signal).is_pending());
        let id = std::process::id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
        within(signal).await;
        within(other).await;
    }
}
