//! One round of a scene, in a child process: all variants in alternating slices.

use std::{
    convert::Infallible,
    hint::black_box,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, runtime, task::JoinSet};
use tower::{Layer, Service, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, flush::Tracker};
use tower_offload_benches::{BoxError, platform};

use crate::{HOOK, Order, PLAIN, Sample, TRACKED, client::Client};

pub(crate) fn run(order: Order) -> Result<Vec<Sample>, BoxError> {
    let workers = runtime::Builder::new_multi_thread().worker_threads(order.scene.workers).enable_all().build()?;
    let client = runtime::Builder::new_current_thread().enable_all().build()?;
    client.block_on(async {
        let mut sides = Vec::new();
        for name in &order.variants {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            start(&workers, name, listener)?;
            sides.push(Side::new(address, order.scene.connections).await?);
        }
        let count = sides.len();
        for slice in 0..=order.slices {
            for position in 0..count {
                sides[(slice + position) % count].run_slice(order.slice, slice > 0).await?;
            }
        }
        Ok(sides.iter().map(Side::sample).collect())
    })
}

/// A variant with its connections.
struct Side {
    clients: Vec<Client>,
    responses: u64,
    cpu: Duration,
    wall: Duration,
}

impl Side {
    async fn new(address: SocketAddr, connections: usize) -> io::Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(Client::connect(address).await?);
        }
        Ok(Self { clients, responses: 0, cpu: Duration::ZERO, wall: Duration::ZERO })
    }

    async fn run_slice(&mut self, length: Duration, is_measured: bool) -> Result<(), BoxError> {
        let (start, cpu) = (Instant::now(), platform::cpu_time());
        let mut running = JoinSet::new();
        for mut client in self.clients.drain(..) {
            running.spawn(async move {
                let responses = client.run(|| start.elapsed() < length).await?;
                io::Result::Ok((client, responses))
            });
        }
        let mut responses = 0;
        while let Some(ended) = running.join_next().await {
            let (client, of_client) = ended??;
            self.clients.push(client);
            responses += of_client;
        }
        if is_measured {
            let wall = start.elapsed();
            self.responses += responses;
            self.wall += wall;
            // Uses the wall time on systems that do not report CPU time.
            self.cpu += platform::cpu_time().zip(cpu).map_or(wall, |(now, then)| now - then);
        }
        Ok(())
    }

    fn sample(&self) -> Sample {
        let responses = self.responses as f64;
        Sample { cpu_us: self.cpu.as_secs_f64() * 1e6 / responses, per_second: responses / self.wall.as_secs_f64() }
    }
}

/// Serves a variant on the runtime of the workers.
fn start(workers: &runtime::Runtime, name: &str, listener: std::net::TcpListener) -> Result<(), BoxError> {
    let handler = service_fn(move |_: Request<Incoming>| async { respond() });
    match name {
        PLAIN => workers.spawn(accept(listener, None, handler)),
        TRACKED => workers.spawn(accept(listener, Some(Tracker::new()), handler)),
        HOOK => {
            let handler = service_fn(|request: Request<Incoming>| async move {
                if let Some(after) = request.extensions().get::<AfterResponse>() {
                    after.hook(|outcome| _ = black_box(outcome));
                }
                respond()
            });
            let layer = AfterResponseLayer::new(Background::default());
            workers.spawn(accept(listener, Some(Tracker::new()), layer.layer(handler)))
        }
        _ => return Err("there is no such variant".into()),
    };
    Ok(())
}

fn respond() -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

async fn accept<S, B>(listener: std::net::TcpListener, tracker: Option<Tracker>, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((io, _)) = listener.accept().await {
        let _ = io.set_nodelay(true);
        let (io, service) = (TokioIo::new(io), TowerToHyperService::new(service.clone()));
        let server = http2::Builder::new(TokioExecutor::new());
        match &tracker {
            None => drop(tokio::spawn(server.serve_connection(io, service))),
            Some(tracker) => {
                let (io, service) = tracker.track(io, service);
                drop(tokio::spawn(server.serve_connection(io, service)));
            }
        }
    }
}
