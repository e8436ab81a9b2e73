//! Tracked connections over TLS: `cargo run -p tower-offload-tests --example tls`.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing::get, serve::Listener};
use tokio::{
    io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener, net::TcpStream, sync::oneshot, task::JoinSet, time,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls, server::TlsStream};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, axum::serve};

/// Accepts TLS connections. Handshakes run in tasks, so that a slow client does not delay others.
struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            tokio::select! {
                // Up to 1024 handshakes at a time; more clients wait in the backlog.
                (stream, peer) = Listener::accept(&mut self.tcp), if self.handshakes.len() < 1024 => {
                    let handshake = time::timeout(Duration::from_secs(10), self.acceptor.accept(stream));
                    self.handshakes.spawn(async move { Some((handshake.await.ok()?.ok()?, peer)) });
                }
                Some(handshake) = self.handshakes.join_next() => {
                    if let Ok(Some(accepted)) = handshake {
                        return accepted;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let certificate = own.cert.der().clone();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate.clone()], own.signing_key.into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (tcp, background) = (TcpListener::bind("127.0.0.1:0").await?, Background::default());
    let address = tcp.local_addr()?;
    let listener = TlsListener { tcp, acceptor: Arc::new(config).into(), handshakes: JoinSet::new() };
    let hello = async |after: AfterResponse| after.hook(|outcome| println!("{} {}", outcome.end, outcome.delivery));
    let app = Router::new().route("/", get(hello)).layer(AfterResponseLayer::new(background.clone()));
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve(listener, app).shutdown(async { drop(stopped.await) }, Duration::from_secs(10), &background);
    let server = tokio::spawn(server.into_future());

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let mut client = connector.connect("localhost".try_into()?, TcpStream::connect(address).await?).await?;
    client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut response = String::new();
    client.read_to_string(&mut response).await?;
    println!("{}", response.lines().next().unwrap_or("no response"));
    drop(stop);
    println!("stopped: {}", server.await?);
    Ok(())
}
