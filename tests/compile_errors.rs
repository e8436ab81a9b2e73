//! Programs that must not compile, and the messages that name the remedy.
//!
//! Runs `rustc` on each program with the libraries that this test was built with, which takes a
//! fraction of the time that a cargo project for each program would.
#![allow(clippy::unwrap_used)]

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// A program that compiles.
const VALID: &str = "
    use axum::{Router, routing::get};
    use tower_offload::{OffloadLayer, ThreadPool, axum::blocking};

    fn main() {
        let _: Router = Router::new()
            .route(\"/\", get(blocking(ThreadPool::cpu(), || \"hello\")))
            .layer(OffloadLayer::new(ThreadPool::cpu()));
    }
";

const NOT_CLONE: &str = "
    use tower::{ServiceBuilder, ServiceExt};
    use tower_offload::{OffloadLayer, ThreadPool, offload::RejectWithError};

    struct NotClone;

    impl tower::Service<u32> for NotClone {
        type Response = u32;
        type Error = std::io::Error;
        type Future = std::future::Ready<std::io::Result<u32>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, n: u32) -> Self::Future {
            std::future::ready(Ok(n))
        }
    }

    fn main() {
        let layer = OffloadLayer::new(ThreadPool::cpu()).reject(RejectWithError);
        let _ = ServiceBuilder::new().layer(layer).service(NotClone).oneshot(1);
    }
";

const NOT_HTTP: &str = "
    use tower::{Service, ServiceBuilder, service_fn};
    use tower_offload::{OffloadLayer, ThreadPool};

    fn serve(_: impl Service<u32>) {}

    fn main() {
        let number = service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n));
        serve(ServiceBuilder::new().layer(OffloadLayer::new(ThreadPool::cpu())).service(number));
    }
";

const HEAD_OF_A_NUMBER: &str = "
    use tower::{Service, ServiceBuilder, service_fn};
    use tower_offload::{OffloadLayer, ThreadPool, offload::RejectWithError};

    fn serve(_: impl Service<u32>) {}

    fn main() {
        let number = service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n));
        let layer = OffloadLayer::new(ThreadPool::cpu()).reject(RejectWithError).filter(|_| true);
        serve(ServiceBuilder::new().layer(layer).service(number));
    }
";

const ASYNC_FUNCTION: &str = "
    use axum::{Router, routing::get};
    use tower_offload::{ThreadPool, axum::blocking};

    async fn hello(_: axum::extract::Path<u32>) -> &'static str {
        \"hello\"
    }

    fn main() {
        let _: Router = Router::new().route(\"/{id}\", get(blocking(ThreadPool::cpu(), hello)));
    }
";

const ERROR_ON_AXUM: &str = "
    use axum::{Router, routing::get};
    use tower_offload::{OffloadLayer, ThreadPool, offload::RejectWithError};

    fn main() {
        let layer = OffloadLayer::new(ThreadPool::cpu()).reject(RejectWithError);
        let _: Router = Router::new().route(\"/\", get(async || \"hello\")).layer(layer);
    }
";

const UNBUILT_POOL: &str = "
    use tower_offload::{OffloadLayer, ThreadPool};

    fn main() {
        let _ = OffloadLayer::new(ThreadPool::builder().max_threads(4));
    }
";

const ASYNC_BLOCK_IN_A_CLOSURE: &str = "
    use tower_offload::Background;

    fn main() {
        let _ = Background::default().spawn_blocking(|| async {});
    }
";

#[test]
fn compile_errors_name_the_remedy() {
    let compiler = Compiler::new();
    for (program, messages) in [
        (NOT_CLONE, &["the trait `Clone` is not implemented for `NotClone`"][..]),
        (NOT_HTTP, &["`HttpReject` cannot answer for", "use `.reject(RejectWithError)`"]),
        (HEAD_OF_A_NUMBER, &["cannot read requests of type `u32`", "`.filter_request("]),
        (ASYNC_FUNCTION, &["is not a blocking handler", "for an async function, use an `OffloadLayer`"]),
        (UNBUILT_POOL, &["`ThreadPoolBuilder` is not a pool", "`.build()?`"]),
        (ASYNC_BLOCK_IN_A_CLOSURE, &["a task returns `()` or", "a future is submitted with `spawn`"]),
        // The bound is axum's. The module documentation of `offload` lists this message.
        (ERROR_ON_AXUM, &["`Infallible: From<Box<"]),
    ] {
        let errors = compiler.compile(program).expect_err(program);
        for message in messages {
            assert!(errors.contains(message), "no {message:?} in:\n{errors}");
        }
    }
}

/// `rustc` with the libraries in the directory of this test.
struct Compiler {
    libraries: PathBuf,
    /// One library of each crate that the programs use.
    externs: Vec<String>,
    source: PathBuf,
}

impl Compiler {
    /// Chooses the newest libraries with which [`VALID`] compiles. There may be others, with other
    /// features or of another compiler.
    fn new() -> Self {
        let libraries = env::current_exe().unwrap().parent().unwrap().to_owned();
        let source = env::temp_dir().join(format!("tower-offload-{}.rs", std::process::id()));
        let mut compiler = Self { libraries, externs: Vec::new(), source };
        let [offload, axum, tower] =
            ["tower_offload", "axum", "tower"].map(|name| newest_first(&compiler.libraries, name));
        let mut errors = String::new();
        for offload in offload.iter().take(8) {
            for (axum, tower) in axum.iter().flat_map(|axum| tower.iter().map(move |tower| (axum, tower))).take(64) {
                let named = [("tower_offload", offload), ("axum", axum), ("tower", tower)];
                compiler.externs = named.map(|(name, path)| format!("{name}={}", path.display())).into();
                match compiler.compile(VALID) {
                    Ok(()) => return compiler,
                    Err(found) => errors = found,
                }
            }
        }
        panic!("no libraries in {} compile a valid program:\n{errors}", compiler.libraries.display());
    }

    fn compile(&self, program: &str) -> Result<(), String> {
        fs::write(&self.source, program).unwrap();
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc)
            .args(["--edition", "2024", "--crate-type", "bin", "--emit", "metadata", "--out-dir"])
            .arg(env::temp_dir())
            .arg("-L")
            .arg(format!("dependency={}", self.libraries.display()))
            .args(self.externs.iter().flat_map(|library| ["--extern", library]))
            .arg(&self.source)
            .output()
            .unwrap();
        let _ = fs::remove_file(&self.source);
        let _ = fs::remove_file(env::temp_dir().join(format!("libtower_offload_{}.rmeta", std::process::id())));
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

fn newest_first(directory: &Path, name: &str) -> Vec<PathBuf> {
    let changed = |path: &PathBuf| {
        File::open(path).and_then(|file| file.metadata()?.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let is_library = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.strip_prefix(&format!("lib{name}-")).is_some_and(|rest| rest.ends_with(".rlib"))
    };
    let mut found: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).filter(is_library).collect();
    found.sort_by_key(changed);
    found.reverse();
    found
}
