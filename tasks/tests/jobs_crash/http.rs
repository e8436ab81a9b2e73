use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::time::timeout;

use super::program::TIMEOUT;

/// A client that keeps its connections.
#[derive(Clone)]
pub(crate) struct Http(Client<HttpConnector, Empty<Bytes>>);

impl Http {
    pub(crate) fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// Returns an error if there is no complete response.
    pub(crate) async fn send(&self, method: Method, url: &str) -> Result<(StatusCode, Value), String> {
        let request = Request::builder().method(method).uri(url).body(Empty::new()).unwrap();
        let response = async {
            let response = self.0.request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
        };
        timeout(TIMEOUT, response).await.expect("neither a response nor an error")
    }

    /// Enqueues a job and returns its id.
    pub(crate) async fn enqueue(&self, url: &str, key: &str, millis: usize) -> String {
        let (code, status) = self.send(Method::POST, &format!("{url}/jobs?ms={millis}&key={key}")).await.unwrap();
        assert_eq!(code, StatusCode::ACCEPTED, "{status}");
        status["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn status(&self, url: &str, id: &str) -> Value {
        let (code, status) = self.send(Method::GET, &format!("{url}/tasks/{id}")).await.unwrap();
        assert_eq!(code, StatusCode::OK, "{status}");
        status
    }
}
