use std::time::Duration;

use hyper::{Method, StatusCode};
use tokio::{sync::watch, task::JoinSet, time::sleep};

use tower_offload_tests::Random;

use super::http::Http;

/// Clients that ask for jobs, and ask again for one of which they have not heard that it was accepted.
pub(crate) struct Load {
    site: watch::Sender<Site>,
    clients: JoinSet<Asked>,
}

/// Who answers now.
#[derive(Default)]
struct Site {
    urls: Vec<String>,
    is_over: bool,
}

/// What clients have asked for, and heard.
#[derive(Default)]
pub(crate) struct Asked {
    /// Key and id of each job for which there was a 202.
    pub(crate) accepted: Vec<(String, String)>,
    pub(crate) answers_lost: usize,
    pub(crate) refused: usize,
}

const CLIENTS: usize = 4;
/// One in so many jobs is asked for once more though it was accepted.
const ASK_AGAIN: usize = 10;
/// So that fifty rounds make fewer than the ten thousand jobs whose records are kept.
const MOST_PAUSE_MILLIS: usize = 120;
/// Longer than most rounds' rest, so that there is always something to interrupt.
const MOST_WORK_MILLIS: usize = 500;

impl Load {
    pub(crate) fn start(http: &Http, random: &mut Random) -> Self {
        let site = watch::Sender::new(Site::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = Client { number, http: http.clone(), site: site.subscribe(), random: random.split() };
            clients.spawn(client.run());
        }
        Self { site, clients }
    }

    /// From now on they ask these.
    pub(crate) fn goes_to(&self, urls: &[&str]) {
        self.site.send_modify(|site| site.urls = urls.iter().map(|&url| url.to_owned()).collect());
    }

    /// Each comes to an end once its last job was accepted.
    pub(crate) async fn end(self) -> Asked {
        self.site.send_modify(|site| site.is_over = true);
        let mut all = Asked::default();
        for asked in self.clients.join_all().await {
            all.accepted.extend(asked.accepted);
            all.answers_lost += asked.answers_lost;
            all.refused += asked.refused;
        }
        all
    }
}

struct Client {
    number: usize,
    http: Http,
    site: watch::Receiver<Site>,
    random: Random,
}

impl Client {
    async fn run(mut self) -> Asked {
        let mut asked = Asked::default();
        for number in 0.. {
            if self.site.borrow().is_over {
                break;
            }
            let key = format!("{}-{number}", self.number);
            let millis = self.random.below(MOST_WORK_MILLIS);
            let id = self.ask_until_accepted(&key, millis, &mut asked).await;
            self.pause().await;
            // Processes seldom die just between commit and answer. Who asks again then has asked twice for the same.
            if self.random.one_in(ASK_AGAIN) {
                assert_eq!(self.ask_until_accepted(&key, millis, &mut asked).await, id, "{key}");
            }
            asked.accepted.push((key, id));
        }
        asked
    }

    async fn ask_until_accepted(&mut self, key: &str, millis: usize, asked: &mut Asked) -> String {
        loop {
            if let Some(id) = self.ask(key, millis, asked).await {
                return id;
            }
            self.pause().await;
        }
    }

    /// Its id, if it was accepted.
    async fn ask(&mut self, key: &str, millis: usize, asked: &mut Asked) -> Option<String> {
        let url = {
            let site = self.site.wait_for(|site| !site.urls.is_empty()).await.unwrap();
            site.urls[self.random.below(site.urls.len())].clone()
        };
        match self.http.send(Method::POST, &format!("{url}/jobs?ms={millis}&key={key}")).await {
            Ok((StatusCode::ACCEPTED, status)) => {
                return Some(status["id"].as_str().unwrap().to_owned());
            }
            Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => asked.refused += 1,
            Ok((code, problem)) => panic!("{code}: {problem}"),
            Err(_) => asked.answers_lost += 1,
        }
        None
    }

    async fn pause(&mut self) {
        let millis = self.random.below(MOST_PAUSE_MILLIS);
        sleep(Duration::from_millis(millis as u64)).await;
    }
}
