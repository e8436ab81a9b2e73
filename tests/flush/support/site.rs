use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpSocket,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tower_offload::flush::{Tracker, TrackerStats};

use super::{Latch, Record, Stack, Wire, counting::Counting, events::Event, listener::SMALL_RECEIVE_BUFFER, tls};

/// A running server and its events.
pub(crate) struct Site {
    address: SocketAddr,
    pub(crate) stack: Stack,
    small_buffers: bool,
    /// Holds the handlers of `/wait/..`.
    pub(crate) handlers: Latch,
    /// Holds the bodies of `/gated/..`.
    pub(crate) gate: Latch,
    events: mpsc::UnboundedReceiver<Event>,
    seen: Vec<Event>,
    registered: Arc<AtomicUsize>,
    tracker: Tracker,
    shutdown: watch::Sender<bool>,
    server: JoinHandle<()>,
}

impl Site {
    #[expect(clippy::too_many_arguments, reason = "called in one place")]
    pub(super) fn new(
        address: SocketAddr,
        stack: Stack,
        small_buffers: bool,
        handlers: Latch,
        gate: Latch,
        events: mpsc::UnboundedReceiver<Event>,
        registered: Arc<AtomicUsize>,
        tracker: Tracker,
        shutdown: watch::Sender<bool>,
        server: JoinHandle<()>,
    ) -> Self {
        let seen = Vec::new();
        Self { address, stack, small_buffers, handlers, gate, events, seen, registered, tracker, shutdown, server }
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the outcome of a request.
    pub(crate) async fn record(&mut self, path: &str) -> Record {
        let found = self.find(|event| matches!(event, Event::Hook(record) if record.path == path)).await;
        let Event::Hook(record) = found else { unreachable!() };
        record
    }

    /// Waits until the body of a response was dropped.
    pub(crate) async fn body_dropped(&mut self, path: &str) {
        self.find(|event| matches!(event, Event::BodyDropped { path: of } if of == path)).await;
    }

    /// Waits for the outcome of a request, and checks that its body was dropped before.
    pub(crate) async fn dropped_then_recorded(&mut self, path: &str) {
        let is_of = |event: &Event| match event {
            Event::BodyDropped { path: of } | Event::Hook(Record { path: of, .. }) => of == path,
        };
        assert!(matches!(self.find(is_of).await, Event::BodyDropped { .. }), "the hook ran first");
        self.record(path).await;
    }

    async fn find(&mut self, is: impl Fn(&Event) -> bool) -> Event {
        if let Some(index) = self.seen.iter().position(&is) {
            return self.seen.remove(index);
        }
        loop {
            let event = self.events.recv().await.expect("the event happens before the server ends");
            if is(&event) {
                return event;
            }
            self.seen.push(event);
        }
    }

    /// Returns the outcomes so far that the test has not asked for.
    pub(crate) fn unasked(&mut self) -> Vec<Record> {
        while let Ok(event) = self.events.try_recv() {
            self.seen.push(event);
        }
        let records =
            self.seen.iter().filter_map(|event| if let Event::Hook(record) = event { Some(record) } else { None });
        records.cloned().collect()
    }

    /// Waits for `count` outcomes that the test has not asked for.
    pub(crate) async fn records(&mut self, count: usize) -> Vec<Record> {
        let mut records = Vec::new();
        while records.len() < count {
            let Event::Hook(record) = self.find(|event| matches!(event, Event::Hook(_))).await else { unreachable!() };
            records.push(record);
        }
        records
    }

    /// Drops the server and its connections, except on axum, which spawns them.
    pub(crate) fn kill(&self) {
        self.server.abort();
    }

    /// Returns the number of handlers that have registered a hook.
    pub(crate) fn registered(&self) -> usize {
        self.registered.load(SeqCst)
    }

    /// Returns the counters of the tracker, and checks that no outcome was uncertain.
    #[track_caller]
    pub(crate) fn sure_stats(&self) -> TrackerStats {
        let stats = self.tracker.stats();
        assert_eq!((stats.gave_up, stats.mismatched, stats.unmapped), (0, 0, 0), "{stats:?}");
        stats
    }

    /// Starts a graceful shutdown.
    pub(crate) fn shut_down(&self) {
        self.shutdown.send_replace(true);
    }

    /// Waits until all connections have closed, after [`shut_down`](Self::shut_down).
    pub(crate) async fn over(&mut self) {
        (&mut self.server).await.unwrap();
    }

    /// Opens a connection. Returns it with the counters of its side of the socket.
    pub(crate) async fn connect(&self) -> (Box<dyn Connection>, Arc<Wire>) {
        self.connect_with(|_| ()).await
    }

    /// Opens a connection that is reset when it is dropped.
    pub(crate) async fn connect_to_reset(&self) -> (Box<dyn Connection>, Arc<Wire>) {
        self.connect_with(|socket| socket.set_zero_linger().unwrap()).await
    }

    async fn connect_with(&self, set: impl Fn(&TcpSocket)) -> (Box<dyn Connection>, Arc<Wire>) {
        let socket = TcpSocket::new_v4().unwrap();
        if self.small_buffers {
            socket.set_recv_buffer_size(SMALL_RECEIVE_BUFFER).unwrap();
        }
        set(&socket);
        let stream = socket.connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let wire = Arc::new(Wire::new());
        let io = Counting::new(stream, wire.clone());
        if !self.stack.is_tls() {
            return (Box::new(io), wire);
        }
        let protocol = if self.stack.is_http2() { "h2" } else { "http/1.1" };
        let io = tls::connector(protocol).connect("localhost".try_into().unwrap(), io).await.unwrap();
        assert_eq!(io.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
        (Box::new(io), wire)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The transport of a client.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}
