//! `ConnectInfo` behind each kind of listener.

use std::{future::IntoFuture, net::SocketAddr};

use axum::{Router, extract::ConnectInfo, routing::get, serve::ListenerExt};
use tower_offload::axum::serve;

use crate::support::{TlsListener, Transport, ask, bind, connect};

fn app() -> Router {
    Router::new().route("/", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| format!("from {}", peer.ip())))
}

#[tokio::test]
async fn a_tcp_listener_has_the_address_of_the_client() {
    let (listener, address) = bind().await;
    tokio::spawn(serve(listener, app().into_make_service_with_connect_info::<SocketAddr>()).into_future());
    let response = ask(&mut connect(address, Transport::Http1).await, "/").await;
    assert!(response.ends_with("from 127.0.0.1"), "{response}");
}

#[tokio::test]
async fn a_tapped_listener_has_the_address_of_the_client() {
    let (listener, address) = bind().await;
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    tokio::spawn(serve(listener, app().into_make_service_with_connect_info::<SocketAddr>()).into_future());
    let response = ask(&mut connect(address, Transport::Http1).await, "/").await;
    assert!(response.ends_with("from 127.0.0.1"), "{response}");
}

#[tokio::test]
async fn a_listener_of_the_user_has_what_its_own_type_says() {
    use axum::extract::connect_info::Connected;
    use tower_offload::axum::serve::IncomingStream;

    #[derive(Clone)]
    struct Alpn(Option<Vec<u8>>);

    impl Connected<IncomingStream<'_, TlsListener>> for Alpn {
        fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
            assert!(stream.remote_addr().ip().is_loopback());
            Self(stream.io().get_ref().1.alpn_protocol().map(Into::into))
        }
    }

    let (listener, address) = bind().await;
    let app = Router::new().route("/", get(async |ConnectInfo(Alpn(name)): ConnectInfo<Alpn>| name.unwrap()));
    tokio::spawn(serve(TlsListener::new(listener), app.into_make_service_with_connect_info::<Alpn>()).into_future());
    let response = ask(&mut connect(address, Transport::TlsHttp1).await, "/").await;
    assert!(response.ends_with("http/1.1"), "{response}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_has_the_credentials_of_the_client() {
    use axum::extract::connect_info::Connected;
    use tokio::net::{UnixListener, UnixStream, unix::UCred};
    use tower_offload::axum::serve::IncomingStream;

    #[derive(Clone)]
    struct Client(UCred);

    impl Connected<IncomingStream<'_, UnixListener>> for Client {
        fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
            Self(stream.io().peer_cred().unwrap())
        }
    }

    let path = std::env::temp_dir().join(format!("tower-offload-serve-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let app = Router::new()
        .route("/", get(async |ConnectInfo(client): ConnectInfo<Client>| format!("pid {}", client.0.pid().unwrap())));
    tokio::spawn(serve(listener, app.into_make_service_with_connect_info::<Client>()).into_future());
    let response = ask(&mut UnixStream::connect(&path).await.unwrap(), "/").await;
    std::fs::remove_file(&path).unwrap();
    assert!(response.ends_with(&format!("pid {}", std::process::id())), "{response}");
}

#[tokio::test]
async fn a_plain_router_has_no_connect_info() {
    let (listener, address) = bind().await;
    tokio::spawn(serve(listener, app()).into_future());
    let response = ask(&mut connect(address, Transport::Http1).await, "/").await;
    assert!(response.starts_with("HTTP/1.1 500"), "{response}");
}
