//! The layer in hyper without a framework: `cargo run --example hyper`.

use std::{convert::Infallible, thread};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, server::conn::http1};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};
use tower_offload::{OffloadLayer, ThreadPool};

/// Computes the entropy of an upload. It occupies no thread of the pool while it awaits the body.
async fn entropy(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match request.into_body().collect().await {
        Ok(body) => Response::new(Full::from(format!("{:.3} bits a byte\n", bits(&body.to_bytes())))),
        Err(error) => {
            let mut response = Response::new(Full::from(format!("cannot read the upload: {error}\n")));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    })
}

fn bits(bytes: &[u8]) -> f64 {
    println!("counting on {}", thread::current().name().unwrap_or("an unnamed thread"));
    let mut counts = [0_u64; 256];
    bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let shares = counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / bytes.len() as f64);
    shares.fold(0.0, |sum, share| sum - share * share.log2())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let service = ServiceBuilder::new().layer(OffloadLayer::new(ThreadPool::cpu())).service(service_fn(entropy));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });

    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let text = include_bytes!("hyper.rs").repeat(1000);
    for upload in [vec![0; 1_000_000], text, (0..=255).collect()] {
        let size = upload.len();
        let request = Request::post(format!("http://{address}/")).body(Full::from(upload))?;
        let response = client.request(request).await?.into_body().collect().await?.to_bytes();
        print!("{size} bytes: {}", String::from_utf8_lossy(&response));
    }
    Ok(())
}
