use std::{convert::Infallible, fmt::Display, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Request, WebSocketUpgrade, ws::WebSocket},
    routing::any,
    serve::Listener,
};
use http::StatusCode;
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_offload::{
    Background,
    after_response::{AfterResponse, AfterResponseLayer},
    axum::serve,
    flush::Tracker,
};

use super::{
    BoxError, Latch, Peer, Site, Stack,
    counting::HasSocket,
    listener::CountingListener,
    script::Stage,
    service::{Registers, Scripted},
    tls,
};

/// Configuration of a server. By default its connections are tracked.
#[derive(Clone)]
pub(crate) struct Setup {
    stack: Stack,
    tracked: bool,
    layers: usize,
    small_buffers: bool,
    pipeline_flush: bool,
    background: Background,
    registers: Registers,
}

impl Setup {
    pub(crate) fn on(stack: Stack) -> Self {
        Self {
            stack,
            tracked: true,
            layers: 1,
            small_buffers: false,
            pipeline_flush: false,
            background: Background::default(),
            registers: Arc::new(|_, _| ()),
        }
    }

    pub(crate) fn untracked(self) -> Self {
        Self { tracked: false, ..self }
    }

    /// Sets the number of nested layers: at least one on axum, at most two elsewhere.
    pub(crate) fn layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// Uses small buffers, so that a client that does not read soon stalls the server.
    pub(crate) fn small_buffers(self) -> Self {
        Self { small_buffers: true, ..self }
    }

    pub(crate) fn pipeline_flush(self) -> Self {
        Self { pipeline_flush: true, ..self }
    }

    pub(crate) fn background(self, background: &Background) -> Self {
        Self { background: background.clone(), ..self }
    }

    /// Sets a closure that each handler calls with its handle and path, before it responds.
    pub(crate) fn registers(self, registers: impl Fn(&AfterResponse, &str) + Send + Sync + 'static) -> Self {
        Self { registers: Arc::new(registers), ..self }
    }

    pub(crate) fn start(self) -> Site {
        let listener = CountingListener::bind(self.small_buffers);
        let address = listener.address();
        let (handlers, gate) = (Latch::new(), Latch::new());
        let (events, received) = mpsc::unbounded_channel();
        let scripted = Scripted {
            stage: Stage { gate: gate.door(), events },
            handlers: handlers.door(),
            registers: self.registers.clone(),
            registered: Arc::default(),
        };
        let registered = scripted.registered.clone();
        let shutdown = watch::Sender::new(false);
        let (server, tracker) = if self.stack.is_axum() {
            self.axum(listener, scripted, shutdown.subscribe())
        } else {
            let tracker = Tracker::new();
            let serve = self.clone().hyper(listener, scripted, tracker.clone(), shutdown.subscribe());
            (tokio::spawn(serve), tracker)
        };
        let (stack, small_buffers) = (self.stack, self.small_buffers);
        Site::new(address, stack, small_buffers, handlers, gate, received, registered, tracker, shutdown, server)
    }

    fn axum(
        &self,
        listener: CountingListener,
        scripted: Scripted,
        mut shutdown: watch::Receiver<bool>,
    ) -> (JoinHandle<()>, Tracker) {
        let web_socket = scripted.clone();
        let mut app = Router::new().route("/ws", any(|upgrade, request| echo(web_socket, upgrade, request))).fallback(
            move |request: Request| async move {
                scripted.answer(request).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
            },
        );
        for _ in 0..self.layers {
            app = app.layer(AfterResponseLayer::new(self.background.clone()));
        }
        let shut_down = async move { _ = shutdown.wait_for(|shut_down| *shut_down).await };
        let app = app.into_make_service_with_connect_info::<Peer>();
        let tracker = Tracker::new();
        let server = if self.tracked {
            let serve = serve(listener, app).tracker(&tracker);
            #[cfg(target_os = "linux")]
            let serve = serve.tcp_socket(|io| io.socket());
            let serve = serve.with_graceful_shutdown(shut_down);
            tokio::spawn(async move { serve.await.unwrap() })
        } else {
            let serve = axum::serve(listener, app).with_graceful_shutdown(shut_down);
            tokio::spawn(async move { serve.await.unwrap() })
        };
        (server, tracker)
    }

    async fn hyper(
        self,
        mut listener: CountingListener,
        scripted: Scripted,
        tracker: Tracker,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        loop {
            let (io, peer) = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|shut_down| *shut_down) => break,
            };
            let (setup, scripted, shutdown, tracker) =
                (self.clone(), scripted.clone(), shutdown.clone(), tracker.clone());
            connections.spawn(async move {
                if setup.stack.is_tls() {
                    let Ok(io) = tls::acceptor().accept(io).await else { return };
                    setup.connection(io, peer, scripted, &tracker, shutdown).await;
                } else {
                    setup.connection(io, peer, scripted, &tracker, shutdown).await;
                }
            });
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn connection<T>(
        self,
        io: T,
        peer: Peer,
        scripted: Scripted,
        tracker: &Tracker,
        shutdown: watch::Receiver<bool>,
    ) where
        T: AsyncRead + AsyncWrite + HasSocket + Unpin + Send + 'static,
    {
        let layer = AfterResponseLayer::new(self.background.clone());
        let service = service_fn(move |request| scripted.clone().answer(request));
        let with_peer = move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer.clone()));
            request
        };
        match self.layers {
            0 => self.track(io, service.map_request(with_peer), tracker, shutdown).await,
            1 => self.track(io, layer.layer(service).map_request(with_peer), tracker, shutdown).await,
            layers => {
                assert_eq!(layers, 2);
                let service = layer.layer(layer.layer(service)).map_request(with_peer);
                self.track(io, service, tracker, shutdown).await;
            }
        }
    }

    async fn track<T, S, B>(self, io: T, service: S, tracker: &Tracker, shutdown: watch::Receiver<bool>)
    where
        T: AsyncRead + AsyncWrite + HasSocket + Unpin + Send + 'static,
        S: tower::Service<http::Request<Incoming>, Response = http::Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Display + Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Display + Into<BoxError>> + Send + 'static,
    {
        let service = TowerToHyperService::new(service);
        if !self.tracked {
            return self.serve(TokioIo::new(io), service, shutdown).await;
        }
        // One stack tracks a transport with hyper's traits, the other one with tokio's.
        if matches!(self.stack, Stack::HyperHttp1 | Stack::TlsHttp2) {
            let (io, service) = tracker.track(TokioIo::new(io), service);
            #[cfg(target_os = "linux")]
            let io = io.with_socket(|io| io.inner().socket());
            self.serve(io, service, shutdown).await;
        } else {
            let (io, service) = tracker.track(io, service);
            #[cfg(target_os = "linux")]
            let io = io.with_socket(|io| io.socket());
            self.serve(TokioIo::new(io), service, shutdown).await;
        }
    }

    async fn serve<I, S, B>(self, io: I, service: S, mut shutdown: watch::Receiver<bool>)
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
        S: hyper::service::Service<http::Request<Incoming>, Response = http::Response<B>> + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        /// The connections of hyper have the same methods, but no common trait.
        macro_rules! drive {
            ($connection:expr) => {{
                let mut connection = std::pin::pin!($connection);
                tokio::select! {
                    _ = connection.as_mut() => return,
                    _ = shutdown.wait_for(|shut_down| *shut_down) => connection.as_mut().graceful_shutdown(),
                }
                let _ = connection.await;
            }};
        }
        match self.stack {
            Stack::HyperHttp1 => {
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.pipeline_flush(self.pipeline_flush);
                drive!(builder.serve_connection(io, service).with_upgrades());
            }
            Stack::HyperHttp2 => {
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drive!(builder.enable_connect_protocol().serve_connection(io, service));
            }
            _ => {
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http1().pipeline_flush(self.pipeline_flush);
                drive!(builder.serve_connection_with_upgrades(io, service));
            }
        }
    }
}

async fn echo(
    scripted: Scripted,
    upgrade: WebSocketUpgrade,
    request: Request,
) -> Result<axum::response::Response, Infallible> {
    scripted.register("/ws", request.extensions());
    Ok(upgrade.on_upgrade(|mut socket: WebSocket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    }))
}
