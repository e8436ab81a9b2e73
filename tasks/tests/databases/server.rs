//! A Postgres server that a test may stop.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

/// A server of its own, which is stopped and deleted with the value.
pub(crate) struct OwnServer {
    bin: PathBuf,
    folder: PathBuf,
    port: u16,
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
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { bin, folder, port };
        let data = server.folder.join("data");
        server.run(&format!("initdb -D {} -A trust -U postgres -E UTF8 --locale=C.UTF-8", data.display()));
        server.pg_ctl("start");
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Restarts the server. `mode` is `fast` or `immediate`, which is like a crash.
    pub(crate) async fn restart(&self, mode: &'static str) {
        let (bin, folder, port) = (self.bin.clone(), self.folder.clone(), self.port);
        let restart = move || {
            let server = std::mem::ManuallyDrop::new(Self { bin, folder, port });
            server.pg_ctl(&format!("-m {mode} restart"));
        };
        tokio::task::spawn_blocking(restart).await.unwrap();
    }

    fn pg_ctl(&self, action: &str) {
        let (data, log, port) = (self.folder.join("data"), self.folder.join("log"), self.port);
        let options = format!("-p {port} -k {} -c listen_addresses=127.0.0.1", self.folder.display());
        self.run(&format!("pg_ctl -D {} -w -l {} -o '{options}' {action}", data.display(), log.display()));
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
        self.pg_ctl("-m immediate stop");
        let _ = fs::remove_dir_all(&self.folder);
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
