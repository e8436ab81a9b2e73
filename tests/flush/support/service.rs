use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use axum::extract::ConnectInfo;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_offload::after_response::AfterResponse;

use super::{
    Door, Peer, Record,
    events::Event,
    script::{Script, Stage},
};

/// Called by the handler with its handle and path, before it responds.
pub(crate) type Registers = Arc<dyn Fn(&AfterResponse, &str) + Send + Sync>;

/// A handler that registers a hook and responds by script.
#[derive(Clone)]
pub(crate) struct Scripted {
    pub(crate) stage: Stage,
    /// Handlers of `/wait/..` wait here.
    pub(crate) handlers: Door,
    pub(crate) registers: Registers,
    pub(crate) registered: Arc<AtomicUsize>,
}

/// Error of the handler of `/fail`.
#[derive(Debug)]
pub(crate) struct HandlerFailed;

impl fmt::Display for HandlerFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the handler failed")
    }
}

impl std::error::Error for HandlerFailed {}

impl Scripted {
    /// Responds by path:
    ///
    /// * `/wait/..` waits for the latch of the handlers, and continues with the rest.
    /// * `/read/..` reads the request, and continues with the rest.
    /// * `/fail` and `/panic` end without a response.
    /// * `/upgrade` and `CONNECT` open a tunnel that echoes in capitals.
    /// * For other paths see [`Stage::play`].
    pub(crate) async fn answer<B>(self, mut request: Request<B>) -> Result<Response<Script>, HandlerFailed>
    where
        B: Body<Error: fmt::Debug> + Unpin,
    {
        let key = request.uri().path_and_query().map_or("CONNECT", |path| path.as_str()).to_owned();
        self.register(&key, request.extensions());
        let mut script = &*key;
        if let Some(rest) = script.strip_prefix("/wait") {
            self.handlers.pass().await;
            script = rest;
        }
        if let Some(rest) = script.strip_prefix("/read") {
            request.body_mut().collect().await.unwrap();
            script = rest;
        }
        if request.method() == Method::CONNECT || script == "/upgrade" {
            let connect = request.method() == Method::CONNECT;
            tokio::spawn(tunnel(hyper::upgrade::on(&mut request)));
            return Ok(self.stage.upgrade(&key, connect));
        }
        match script.split('?').next().unwrap() {
            "/fail" => Err(HandlerFailed),
            "/panic" => panic!("a handler panics"),
            _ => Ok(self.stage.play(&key, script)),
        }
    }

    pub(crate) fn register(&self, key: &str, extensions: &http::Extensions) {
        let Some(after) = extensions.get::<AfterResponse>() else { return };
        let ConnectInfo(peer) = extensions.get::<ConnectInfo<Peer>>().expect("the server inserts the address").clone();
        self.registered.fetch_add(1, SeqCst);
        (self.registers)(after, key);
        let (key, events) = (key.to_owned(), self.stage.events.clone());
        after.hook(move |outcome| {
            let _ = events.send(Event::Hook(Record::new(key, outcome, peer)));
        });
    }
}

impl Stage {
    fn upgrade(&self, key: &str, connect: bool) -> Response<Script> {
        let mut response = self.play(key, "/empty");
        if !connect {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static("capitals"));
        }
        response
    }
}

async fn tunnel(upgrade: hyper::upgrade::OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut upgraded = TokioIo::new(upgraded);
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = upgraded.read(&mut buffer).await {
        if upgraded.write_all(&buffer[..read].to_ascii_uppercase()).await.and(upgraded.flush().await).is_err() {
            return;
        }
    }
    let _ = upgraded.shutdown().await;
}
