//! A Postgres server that a test may stop.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tower_offload_tests::ReservedPort;

/// A server of its own, which is stopped and deleted with the value.
pub(crate) struct OwnServer {
    installation: Installation,
    /// The server is restarted on it.
    port: ReservedPort,
}

/// The programs and the files of a server.
#[derive(Clone)]
struct Installation {
    bin: PathBuf,
    folder: PathBuf,
}

impl OwnServer {
    /// Starts a server. Returns `None`, and prints why, if Postgres is not installed here.
    pub(crate) async fn start() -> Option<Self> {
        let Some(bin) = installed() else {
            println!("skipped: the programs of Postgres are not in /usr/lib/postgresql");
            return None;
        };
        tokio::task::spawn_blocking(move || Some(Self::create(bin))).await.unwrap()
    }

    fn create(bin: PathBuf) -> Self {
        let folder = std::env::temp_dir().join(format!("tower-offload-{:016x}", super::random()));
        fs::create_dir(&folder).unwrap();
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&folder).status().unwrap().success());
        }
        let server = Self { installation: Installation { bin, folder }, port: ReservedPort::new() };
        let (own, data) = (&server.installation, server.installation.folder.join("data"));
        own.run(&format!("initdb -D {} --no-sync -A trust -U postgres -E UTF8 --locale=C.UTF-8", data.display()));
        own.pg_ctl(server.port.number(), "start");
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.port.address())
    }

    /// Restarts the server. `mode` is `fast` or `immediate`, which is like a crash.
    pub(crate) async fn restart(&self, mode: &'static str) {
        let (own, port) = (self.installation.clone(), self.port.number());
        tokio::task::spawn_blocking(move || own.pg_ctl(port, &format!("-m {mode} restart"))).await.unwrap();
    }
}

impl Installation {
    fn pg_ctl(&self, port: u16, action: &str) {
        let (data, log) = (self.folder.join("data"), self.folder.join("log"));
        let options = format!("-p {port} -k {} -c listen_addresses=127.0.0.1 -c fsync=off", self.folder.display());
        self.run(&format!("pg_ctl -D {} -w -t 120 -l {} -o '{options}' {action}", data.display(), log.display()));
    }

    /// Runs a program of Postgres, which refuses to run as root.
    fn run(&self, command: &str) {
        let command = format!("cd / && {}/{command} >/dev/null", self.bin.display());
        let (shell, arguments) =
            if is_root() { ("su", vec!["postgres", "-s", "/bin/sh", "-c"]) } else { ("sh", vec!["-c"]) };
        let status = Command::new(shell).args(arguments).arg(&command).status().unwrap();
        assert!(status.success(), "{command}: {status}");
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.installation.pg_ctl(self.port.number(), "-m immediate stop");
        let _ = fs::remove_dir_all(&self.installation.folder);
    }
}

fn installed() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let programs = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    programs.filter(|bin: &PathBuf| Path::new(bin).join("pg_ctl").exists()).max()
}

fn is_root() -> bool {
    // The owner of this entry is the effective user of the process.
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0
}
