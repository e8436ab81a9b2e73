//! Two network namespaces whose link goes down. Needs unprivileged user namespaces or root, and the
//! programs `unshare` and `ip`.

use std::{
    env, fs,
    fs::File,
    io::Write,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    process::{Command, Output},
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tower_offload::after_response::Delivery;
use tower_offload_tests::skip;

use super::{
    Server, connect,
    reader::{Pace, Reader},
};
use crate::support::within;

const INSIDE: &str = "TOWER_OFFLOAD_TEST_NAMESPACE";
const SERVER: &str = "10.0.0.1";
const CLIENT: &str = "10.0.0.2";
const LINK: [&str; 9] = ["ip", "link", "add", "server", "type", "veth", "peer", "name", "client"];

/// Runs a program in new user and network namespaces.
fn unshare(program: &[&str]) -> std::io::Result<Output> {
    Command::new("unshare").args(["--map-root-user", "--net"]).args(program).env(INSIDE, "1").output()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The system may permit neither of it, so that the reason is printed.
fn refusal() -> Option<String> {
    match unshare(&LINK) {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(text(&output)),
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn link_that_is_down_acknowledges_nothing() {
    if let Some(reason) = refusal() {
        return skip(&format!("network namespaces cannot be used here: {reason}"));
    }
    let program = env::current_exe().unwrap();
    let arguments = [program.to_str().unwrap(), "acknowledged::namespaces::inside", "--exact", "--nocapture"];
    let output = unshare(&arguments).unwrap();
    let text = text(&output);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// The test itself. In an ordinary test run it returns at once.
#[tokio::test]
async fn inside() {
    if env::var(INSIDE).is_err() {
        return;
    }
    let namespace = Namespace::start().await;
    for end in ["server", "client"] {
        returns_after_the_flush(&namespace, end).await;
        returns_within_the_response(&namespace, end).await;
        stays_down(&namespace, end).await;
    }
}

/// A response that was flushed while the link was down is acknowledged once it is up.
async fn returns_after_the_flush(namespace: &Namespace, end: &str) {
    let mut server = Server::start_on(SERVER);
    let socket = namespace.connect(server.address);
    get(&socket, "/held/5");
    server.begun().await;
    namespace.set(end, "down");
    server.release();
    server.has_no_outcome().await;
    namespace.set(end, "up");
    let mut reader = Reader::start(&socket, Pace::FAST);
    assert_eq!(server.delivery().await, Delivery::Acknowledged);
    within(reader.has_read(5)).await;
    assert_eq!(server.counted(), (1, 0));
}

/// The link goes down while a response is sent.
async fn returns_within_the_response(namespace: &Namespace, end: &str) {
    let mut server = Server::start_on(SERVER);
    let socket = namespace.connect(server.address);
    get(&socket, "/1000000");
    server.begun().await;
    // The process stops after a part, so that the rest is on its way in any case.
    let mut part = Reader::start(&socket, Pace { limit: 100_000, ..Pace::FAST });
    within(part.has_read(100_000)).await;
    namespace.set(end, "down");
    server.has_no_outcome().await;
    let mut rest = Reader::start(&socket, Pace::FAST);
    namespace.set(end, "up");
    assert_eq!(server.delivery().await, Delivery::Acknowledged);
    within(rest.has_read(900_000)).await;
    assert_eq!(server.counted(), (1, 0));
}

async fn stays_down(namespace: &Namespace, end: &str) {
    let mut server = Server::start_on(SERVER);
    let socket = namespace.connect(server.address);
    get(&socket, "/held/5");
    server.begun().await;
    namespace.set(end, "down");
    server.release();
    tokio::time::pause();
    assert_eq!(server.outcomes.recv().await, Some(("hook", Delivery::Flushed)));
    tokio::time::resume();
    assert_eq!(server.counted(), (0, 1));
    namespace.set(end, "up");
}

fn get(mut socket: &TcpStream, path: &str) {
    write!(socket, "GET {path} HTTP/1.1\r\nhost: site\r\n\r\n").unwrap();
}

/// The network namespace of the client. It ends with the process that holds it.
struct Namespace(tokio::process::Child);

impl Namespace {
    async fn start() -> Self {
        let holder = tokio::process::Command::new("unshare").args(["--net", "sleep", "600"]).kill_on_drop(true).spawn();
        let namespace = Self(holder.unwrap());
        let link = |path: &str| fs::read_link(path).unwrap();
        while link(&namespace.path()) == link("/proc/self/ns/net") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        run(&LINK);
        run(&["ip", "link", "set", "client", "netns", &namespace.holder()]);
        run(&["ip", "addr", "add", &format!("{SERVER}/24"), "dev", "server"]);
        namespace.enter(|| run(&["ip", "addr", "add", &format!("{CLIENT}/24"), "dev", "client"]));
        namespace.set("server", "up");
        namespace.set("client", "up");
        namespace
    }

    fn holder(&self) -> String {
        self.0.id().expect("it runs").to_string()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder())
    }

    /// Runs a closure on a thread in the namespace. Sockets stay in the namespace that they were
    /// created in.
    fn enter<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                run()
            });
            inside.join().unwrap()
        })
    }

    fn connect(&self, address: SocketAddr) -> TcpStream {
        self.enter(|| connect(address))
    }

    /// Takes one end of the link `up` or `down`.
    fn set(&self, end: &str, state: &str) {
        let set = || run(&["ip", "link", "set", end, state]);
        if end == "client" { self.enter(set) } else { set() }
    }
}

fn run(program: &[&str]) {
    let output = Command::new(program[0]).args(&program[1..]).output().unwrap();
    assert!(output.status.success(), "{program:?}: {}", text(&output));
}
