use std::time::Duration;

use hyper::{Method, StatusCode};
use tokio::{sync::watch, task::JoinSet, time::sleep};

use tower_offload_tests::Random;

use super::http::Http;

/// Clients that enqueue jobs, and repeat each request until it is accepted.
pub(crate) struct Load {
    servers: watch::Sender<Servers>,
    clients: JoinSet<Requests>,
}

/// The servers that are running.
#[derive(Default)]
struct Servers {
    urls: Vec<String>,
    is_ended: bool,
}

/// The requests of all clients.
#[derive(Default)]
pub(crate) struct Requests {
    /// Key and id of each accepted job.
    pub(crate) accepted: Vec<(String, String)>,
    pub(crate) responses_lost: usize,
    pub(crate) rejected: usize,
}

const CLIENTS: usize = 4;
/// One in this number of jobs is enqueued again although it was accepted.
const REPEAT_ONE_IN: usize = 10;
/// Maximum pause of a client before a job. With it, fifty rounds enqueue fewer than the 10 000 jobs
/// whose records are kept.
const MAX_PAUSE_MILLIS: usize = 120;
/// Maximum run time of a job, long enough that each round interrupts jobs.
const MAX_WORK_MILLIS: usize = 500;

impl Load {
    pub(crate) fn start(http: &Http, random: &mut Random) -> Self {
        let servers = watch::Sender::new(Servers::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = Client { number, http: http.clone(), servers: servers.subscribe(), random: random.split() };
            clients.spawn(client.run());
        }
        Self { servers, clients }
    }

    /// Sets the servers that the clients send requests to.
    pub(crate) fn set_servers(&self, urls: &[&str]) {
        self.servers.send_modify(|servers| servers.urls = urls.iter().map(|&url| url.to_owned()).collect());
    }

    /// Stops each client when its current job is accepted.
    pub(crate) async fn end(self) -> Requests {
        self.servers.send_modify(|servers| servers.is_ended = true);
        let mut all = Requests::default();
        for requests in self.clients.join_all().await {
            all.accepted.extend(requests.accepted);
            all.responses_lost += requests.responses_lost;
            all.rejected += requests.rejected;
        }
        all
    }
}

struct Client {
    number: usize,
    http: Http,
    servers: watch::Receiver<Servers>,
    random: Random,
}

impl Client {
    async fn run(mut self) -> Requests {
        let mut requests = Requests::default();
        for number in 0.. {
            if self.servers.borrow().is_ended {
                break;
            }
            let key = format!("{}-{number}", self.number);
            let millis = self.random.below(MAX_WORK_MILLIS);
            let id = self.enqueue_until_accepted(&key, millis, &mut requests).await;
            self.pause().await;
            // Processes rarely crash between commit and response, so repeat some requests on
            // purpose.
            if self.random.one_in(REPEAT_ONE_IN) {
                assert_eq!(self.enqueue_until_accepted(&key, millis, &mut requests).await, id, "{key}");
            }
            requests.accepted.push((key, id));
        }
        requests
    }

    async fn enqueue_until_accepted(&mut self, key: &str, millis: usize, requests: &mut Requests) -> String {
        loop {
            if let Some(id) = self.enqueue(key, millis, requests).await {
                return id;
            }
            self.pause().await;
        }
    }

    /// Returns the id of the job, if it was accepted.
    async fn enqueue(&mut self, key: &str, millis: usize, requests: &mut Requests) -> Option<String> {
        let url = {
            let servers = self.servers.wait_for(|servers| !servers.urls.is_empty()).await.unwrap();
            servers.urls[self.random.below(servers.urls.len())].clone()
        };
        match self.http.send(Method::POST, &format!("{url}/jobs?ms={millis}&key={key}")).await {
            Ok((StatusCode::ACCEPTED, status)) => {
                return Some(status["id"].as_str().unwrap().to_owned());
            }
            Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => requests.rejected += 1,
            Ok((code, problem)) => panic!("{code}: {problem}"),
            Err(_) => requests.responses_lost += 1,
        }
        None
    }

    async fn pause(&mut self) {
        let millis = self.random.below(MAX_PAUSE_MILLIS);
        sleep(Duration::from_millis(millis as u64)).await;
    }
}
