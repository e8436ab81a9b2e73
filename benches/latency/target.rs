//! The same load against a server that the user runs.

use std::{
    fmt,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    str::FromStr,
    time::Duration,
};

use hyper::Uri;
use tokio::{runtime, time};

use crate::latency::{
    BoxError,
    arrivals::{Arrivals, Schedule, Step},
    client::{Answer, Client, Order},
    conditions::Conditions,
    generator::{self, Stream},
    plan::{Part, Phases, Plan, Scene},
    platform,
    record::Record,
    rows::Run,
    session,
    stop::Stop,
};

/// More than this a second no generator on the same machine can offer and be punctual.
const MAX_RATE: f64 = 100_000.0;
/// How long the server may take for the first requests of all.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server on this machine: `http://127.0.0.1:3000`, `http://localhost:3000`, `http://[::1]:3000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    address: SocketAddr,
}

/// What it is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) ping: Order,
    pub(crate) job: Order,
    /// A second.
    pub(crate) pings: f64,
    pub(crate) jobs: f64,
    pub(crate) arrivals: Arrivals,
    pub(crate) seconds: u64,
}

impl FromStr for Target {
    type Err = BoxError;

    fn from_str(url: &str) -> Result<Self, BoxError> {
        let uri: Uri = url.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!("`{url}`: the target has to be a server without TLS, as http://127.0.0.1:3000").into());
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(format!("`{url}` has a path: say --ping-path and --job-path instead").into());
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let port = match (uri.port_u16(), authority.strip_prefix(uri.host().unwrap_or_default())) {
            (Some(port), _) => port,
            (None, Some("")) => 80,
            // A port that is no number, or a user's name: nothing to guess at.
            (None, _) => {
                return Err(format!("`{url}`: what stands beside the host has to be a port, as in :3000").into());
            }
        };
        if authority.contains('@') {
            return Err(format!("`{url}` has a user's name, which nothing here would send").into());
        }
        let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
            Ok(address) => vec![(address, port).into()],
            // No other name is even looked up.
            Err(_) if host.eq_ignore_ascii_case("localhost") => (host, port).to_socket_addrs()?.collect(),
            Err(_) => Vec::new(),
        };
        match addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()) {
            Some(address) if addresses.iter().all(|it| it.ip().is_loopback()) => Ok(Self { address: *address }),
            _ => Err(format!(
                "`{host}` is not this machine: an open-loop load is an attack on whoever did not ask for it, so only \
                 addresses of this machine's loopback are allowed, as 127.0.0.1, localhost and [::1]"
            )
            .into()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.address)
    }
}

/// One round.
pub(crate) fn measure(target: &Target, load: &Load, descriptors: usize, stop: &Stop) -> Result<Vec<Record>, BoxError> {
    for (name, rate) in [("--pings", load.pings), ("--jobs", load.jobs)] {
        if !(rate > 0.0 && rate <= MAX_RATE) {
            return Err(format!("{name}: {rate} is not a rate from just over 0 to {MAX_RATE} a second").into());
        }
    }
    for order in [&load.ping, &load.job] {
        if !order.path.starts_with('/') {
            return Err(format!("`{}` is no path: it has to begin with /", order.path).into());
        }
    }
    check(target, [&load.ping, &load.job], stop)?;
    let phases = Phases { measure: Duration::from_secs(load.seconds), ..Phases::of_ms(1000, 0, 2000) };
    let part = Part { scene: Scene::Target, loads: vec![None], variants: &[], rounds: 1, phases, overload: None };
    let plan = Plan { jobs: load.arrivals, parts: vec![part.clone()], capacity: Duration::ZERO, repeats: 0 };
    let streams = [
        Stream { order: load.ping.clone(), schedule: Schedule::new(Arrivals::Constant, load.pings) },
        Stream { order: load.job.clone(), schedule: Schedule::new(load.arrivals, load.jobs) },
    ];
    eprintln!(
        "latency: {} {} and {} {} a second to {target}, for {} s and 1 s before that do not count",
        load.pings, load.ping.path, load.jobs, load.job.path, load.seconds
    );
    let observation = generator::run(target.address, &streams, phases, session::max_connections(descriptors), stop)?;
    let [ping, work] = observation.tallies.try_into().map_err(|_| "two streams have two tallies")?;
    let run = Run { ping, work, lateness: observation.lateness, others: None };
    let conditions = Conditions::of(&plan, generator::urgently(platform::raise_priority));
    let jobs = [Step { length: Duration::MAX, per_second: load.jobs }];
    let name = format!("{target}{}", load.job.path);
    Ok(Record::of(&name, None, &part, &jobs, &[run], &conditions).into_iter().collect())
}

/// That there is such a server, and that it knows these paths: else all the figures would be of its 404.
fn check(target: &Target, orders: [&Order; 2], stop: &Stop) -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async {
        let client = Client::new(target.address, 1);
        for order in orders {
            let answer = time::timeout(PATIENCE, client.send(order));
            match answer.await.map_err(|_| format!("{target}{} has not answered in {PATIENCE:?}", order.path))? {
                Ok(Answer::Success) => {}
                Ok(Answer::Expired) => return Err(format!("{target}{} is busy already", order.path).into()),
                Ok(Answer::Other(status)) => return Err(wrong_answer(target, order, status)),
                Err(error) => return Err(format!("no HTTP/1 server answers on {target}: {error}").into()),
            }
        }
        Ok(())
    };
    runtime.block_on(async {
        tokio::select! {
            answers = asked => answers,
            () = stop.wanted() => Err("interrupted".into()),
        }
    })
}

fn wrong_answer(target: &Target, order: &Order, status: hyper::StatusCode) -> BoxError {
    let method = if order.body.is_some() { "POST" } else { "GET" };
    format!("{method} {target}{} answered {status}: see --ping-path, --job-path and --job-body", order.path).into()
}
