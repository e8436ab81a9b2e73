//! Programs that tests start: Postgres servers and PgBouncer.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tower_offload_tests::ReservedPort;

/// A directory of a program, owned by the user that runs it.
pub(crate) struct Home(PathBuf);

impl Home {
    pub(crate) fn new() -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let path = std::env::temp_dir().join(format!("tower-offload-{:016x}", u64::from_ne_bytes(random)));
        fs::create_dir(&path).unwrap();
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&path).status().unwrap().success());
        }
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}

/// Runs a program as a user that is not root, because Postgres refuses to run as root.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", program]);
        command
    } else {
        Command::new(program)
    };
    // The server inherits these, and would keep the pipes of the test harness open.
    let command = command.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// Returns the folder of the newest server that is installed, or `None`, and prints why.
fn server_folder() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|version| version.file_name().to_str()?.parse::<u32>().ok()).max();
    if newest.is_none() {
        println!("skipped: there is no server in /usr/lib/postgresql");
    }
    Some(Path::new("/usr/lib/postgresql").join(newest?.to_string()).join("bin"))
}

/// A Postgres server of a test, which is stopped with the value.
pub(crate) struct Server {
    home: Home,
    programs: PathBuf,
    port: ReservedPort,
}

impl Server {
    /// Starts a server. Returns `None`, and prints why, if none is installed.
    pub(crate) fn start() -> Option<Self> {
        let server = Self { home: Home::new(), programs: server_folder()?, port: ReservedPort::new() };
        let data = server.data();
        server.run("initdb", &["-D", &data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]);
        server.control("start", &[]);
        Some(server)
    }

    /// Starts a standby of this server.
    pub(crate) fn standby(&self) -> Self {
        let standby = Self { home: Home::new(), programs: self.programs.clone(), port: ReservedPort::new() };
        let (data, port) = (standby.data(), self.port.number().to_string());
        let source = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-D", &data];
        standby.run("pg_basebackup", &[&source[..], &["-R", "-X", "stream", "-c", "fast", "--no-sync"]].concat());
        standby.control("start", &[]);
        standby
    }

    pub(crate) fn address(&self) -> String {
        self.port.address()
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address())
    }

    pub(crate) fn promote(&self) {
        self.control("promote", &[]);
    }

    /// Stops the server as if it had crashed.
    pub(crate) fn crash(&self) {
        self.control("stop", &["-m", "immediate"]);
    }

    pub(crate) fn restart(&self, mode: &str) {
        self.control("restart", &["-m", mode]);
    }

    fn data(&self) -> String {
        self.home.file("data")
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        run(&self.programs.join(program).display().to_string(), arguments);
    }

    fn control(&self, action: &str, arguments: &[&str]) {
        let (data, log, home) = (self.data(), self.home.file("log"), self.home.file(""));
        let options = format!("-p {} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off", self.port.number());
        let common = [action, "-D", &data, "-w", "-t", "120"];
        let server: &[&str] = if matches!(action, "start" | "restart") { &["-l", &log, "-o", &options] } else { &[] };
        self.run("pg_ctl", &[&common[..], server, arguments].concat());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been stopped before.
        let data = self.data();
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.run("pg_ctl", &["stop", "-D", &data, "-m", "immediate"]);
        }));
    }
}

/// PgBouncer between a test and the server at `address`, which is stopped with the value.
pub(crate) struct PgBouncer {
    home: Home,
    port: ReservedPort,
}

impl PgBouncer {
    /// Returns `None`, and prints why, if PgBouncer is not installed.
    pub(crate) fn start(address: &str, pool_mode: &str, more: &str) -> Option<Self> {
        const PROGRAM: &str = "/usr/sbin/pgbouncer";
        if !Path::new(PROGRAM).exists() {
            println!("skipped: PgBouncer is not installed");
            return None;
        }
        let bouncer = Self { home: Home::new(), port: ReservedPort::new() };
        let (host, port) = address.rsplit_once(':').unwrap();
        let (log, pid, own) = (bouncer.home.file("log"), bouncer.home.file("pid"), bouncer.port.number());
        let configuration = format!(
            "[databases]\n* = host={host} port={port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own}\n\
             unix_socket_dir =\nauth_type = any\nlogfile = {log}\npidfile = {pid}\npool_mode = {pool_mode}\n{more}\n"
        );
        let file = bouncer.home.file("pgbouncer.ini");
        fs::write(&file, configuration).unwrap();
        run(PROGRAM, &["-d", &file]);
        Some(bouncer)
    }

    pub(crate) fn address(&self) -> String {
        self.port.address()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(self.home.file("pid")) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
    }
}
