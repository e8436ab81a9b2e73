//! The kinds of apps and listeners that `serve` accepts. The tests of axum's `serve` module, with
//! one word changed, are among them.

use std::{
    future::{IntoFuture, pending},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use axum::{
    Router,
    handler::{Handler, HandlerWithoutStateExt},
    routing::get,
    serve::ListenerExt,
};
use tokio::net::TcpListener;
use tower_offload::axum::serve;
#[cfg(unix)]
use {axum::extract::connect_info::Connected, tokio::net::UnixListener, tower_offload::axum::serve::IncomingStream};

use crate::support::{ask, in_memory};

async fn handler() {}

#[allow(dead_code, unused_must_use)]
async fn everything_that_axum_accepts_compiles() {
    #[cfg(unix)]
    #[derive(Clone, Debug)]
    struct UdsConnectInfo;

    #[cfg(unix)]
    impl Connected<IncomingStream<'_, UnixListener>> for UdsConnectInfo {
        fn connect_info(_stream: IncomingStream<'_, UnixListener>) -> Self {
            Self
        }
    }

    let router: Router = Router::new();

    let addr = "0.0.0.0:0";

    let tcp_nodelay_listener = || async {
        TcpListener::bind(addr).await.unwrap().tap_io(|tcp_stream| {
            if let Err(err) = tcp_stream.set_nodelay(true) {
                eprintln!("failed to set TCP_NODELAY on incoming connection: {err:#}");
            }
        })
    };

    // router
    serve(TcpListener::bind(addr).await.unwrap(), router.clone());
    serve(tcp_nodelay_listener().await, router.clone()).await.unwrap();
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), router.clone());

    serve(TcpListener::bind(addr).await.unwrap(), router.clone().into_make_service());
    serve(tcp_nodelay_listener().await, router.clone().into_make_service());
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), router.clone().into_make_service());

    serve(TcpListener::bind(addr).await.unwrap(), router.clone().into_make_service_with_connect_info::<SocketAddr>());
    serve(tcp_nodelay_listener().await, router.clone().into_make_service_with_connect_info::<SocketAddr>());
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), router.into_make_service_with_connect_info::<UdsConnectInfo>());

    // method router
    serve(TcpListener::bind(addr).await.unwrap(), get(handler));
    serve(tcp_nodelay_listener().await, get(handler));
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), get(handler));

    serve(TcpListener::bind(addr).await.unwrap(), get(handler).into_make_service());
    serve(tcp_nodelay_listener().await, get(handler).into_make_service());
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), get(handler).into_make_service());

    serve(TcpListener::bind(addr).await.unwrap(), get(handler).into_make_service_with_connect_info::<SocketAddr>());
    serve(tcp_nodelay_listener().await, get(handler).into_make_service_with_connect_info::<SocketAddr>());
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), get(handler).into_make_service_with_connect_info::<UdsConnectInfo>());

    // handler
    serve(TcpListener::bind(addr).await.unwrap(), handler.into_service());
    serve(tcp_nodelay_listener().await, handler.into_service());
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), handler.into_service());

    serve(TcpListener::bind(addr).await.unwrap(), handler.with_state(()));
    serve(tcp_nodelay_listener().await, handler.with_state(()));
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), handler.with_state(()));

    serve(TcpListener::bind(addr).await.unwrap(), handler.into_make_service());
    serve(tcp_nodelay_listener().await, handler.into_make_service());
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), handler.into_make_service());

    serve(TcpListener::bind(addr).await.unwrap(), handler.into_make_service_with_connect_info::<SocketAddr>());
    serve(tcp_nodelay_listener().await, handler.into_make_service_with_connect_info::<SocketAddr>());
    #[cfg(unix)]
    serve(UnixListener::bind("").unwrap(), handler.into_make_service_with_connect_info::<UdsConnectInfo>());
}

#[tokio::test]
async fn local_addr_is_that_of_the_listener() {
    let router: Router = Router::new();
    let bind = async || TcpListener::bind("0.0.0.0:0").await.unwrap();
    let addresses = [
        serve(bind().await, router.clone()).local_addr().unwrap(),
        serve(bind().await, router.clone()).with_graceful_shutdown(pending()).local_addr().unwrap(),
        serve(bind().await, router.clone()).shutdown(pending(), Default::default(), None).local_addr().unwrap(),
    ];
    for address in addresses {
        assert_eq!(address.ip(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert_ne!(address.port(), 0);
    }
}

#[test]
fn into_future_works_outside_a_runtime() {
    let (listener, _) = in_memory();
    _ = serve(listener, Router::new()).into_future();
}

#[tokio::test]
async fn a_listener_may_have_any_io() {
    let (listener, connect) = in_memory();
    let app = Router::new().route("/", get(|| async { "Hello, World!" }));
    tokio::spawn(serve(listener, app).into_future());
    let response = ask(&mut connect(), "/").await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("\r\n\r\nHello, World!"), "{response}");
}

#[tokio::test]
async fn debug_output_names_the_listener_and_the_app() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = serve(listener, Router::new());
    assert!(format!("{server:?}").starts_with("Serve { listener: "));
    let server = server.with_graceful_shutdown(pending());
    assert!(format!("{server:?}").starts_with("WithGracefulShutdown { server: Serve { "));
}
