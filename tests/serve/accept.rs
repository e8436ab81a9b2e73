//! Errors of accepting.

use std::{future::IntoFuture, process::Command};

use axum::{Router, routing::get};
use tower_offload::axum::serve;

use crate::support::{ask, bind, in_memory, read_response, send_get, within};

const FEW_FILES: &str = "TOWER_OFFLOAD_FEW_FILES";

/// Runs this test again in a process with few file descriptors.
#[cfg(unix)]
#[test]
fn a_server_without_file_descriptors_recovers() {
    if std::env::var_os(FEW_FILES).is_some() {
        return runs_out_of_files();
    }
    let name = "accept::a_server_without_file_descriptors_recovers";
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" --exact \"$1\""])
        .args([std::env::current_exe().unwrap().as_os_str(), name.as_ref()])
        .env(FEW_FILES, "yes")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}

#[tokio::main(flavor = "current_thread")]
async fn runs_out_of_files() {
    let (listener, address) = bind().await;
    tokio::spawn(serve(listener, Router::new().route("/", get(|| async { "hello" }))).into_future());
    let mut open = tokio::net::TcpStream::connect(address).await.unwrap();
    send_get(&mut open, "/").await;
    assert_eq!(read_response(&mut open).await.1, 5);

    // Opens the client's socket while a descriptor is left. None is left for the server's side.
    let late = tokio::net::TcpSocket::new_v4().unwrap();
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
        assert!(files.len() < 64);
    }
    let mut late = within(late.connect(address)).await.unwrap();
    let early = tokio::time::timeout(std::time::Duration::from_millis(100), ask(&mut late, "/")).await;
    assert!(early.is_err(), "it cannot be accepted");
    send_get(&mut open, "/").await;
    assert_eq!(read_response(&mut open).await.1, 5);

    drop(files);
    let response = String::from_utf8(crate::support::read_to_close(&mut late).await).unwrap();
    assert!(response.ends_with("hello"), "{response}");
}

#[test]
fn a_runtime_without_a_timer_is_refused_at_the_start() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let error = runtime.block_on(async {
        let (listener, _connect) = in_memory();
        let server = tokio::spawn(serve(listener, Router::new()).into_future());
        tokio::task::yield_now().await;
        assert!(server.is_finished());
        server.await.unwrap_err()
    });
    assert!(error.is_panic());
}
