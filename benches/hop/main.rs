//! Measures the round trip of a trivial closure to another thread and back. Compares this crate's
//! pools and layer with the other ways to run a closure outside of the event loop.
// Benchmarks measure real time, so the ban on the standard library's clock does not apply.
#![allow(clippy::disallowed_types)]

mod load;
mod processes;
mod report;
mod variants;

use std::{fmt, process::ExitCode, time::Duration};

use self::variants::Variant;
use serde::{Deserialize, Serialize};
use tower_offload_benches::{
    BoxError, Options, Row, Unit, child, interleave,
    platform::{self, CountingAllocator},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Number of workers of `multi_thread` runtimes, and of threads of every pool that has a size in
/// most scenes.
const THREADS: usize = 2;

/// Number of threads of every pool that has a size in scenes with more threads than cores.
const MANY_THREADS: usize = 64;

/// Room for all calls at once, so that this crate's pools reject none; the other variants have no
/// limit.
const QUEUE_CAPACITY: usize = 8192;

/// Timeout of a run. A run that takes longer has lost a call.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Flavor {
    CurrentThread,
    MultiThread,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// One caller; each call is timed.
    Sequential,
    /// Many callers; calls are counted and some are timed.
    Throughput,
}

/// The cores that threads are pinned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Pin {
    None,
    /// The runtime on one core, the pool on another.
    Cross,
    /// All threads on one core.
    One,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Scene {
    mode: Mode,
    runtime: Flavor,
    pin: Pin,
    concurrency: usize,
    /// Number of threads of every pool that has a size.
    threads: usize,
}

/// The figures of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sample {
    p50_us: f64,
    p99_us: f64,
    ops_per_s: f64,
    allocs_per_op: f64,
}

/// The lengths of the parts of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Phases {
    warm_up: Duration,
    /// The length of the part that counts allocations. It is not timed, because counting takes
    /// time.
    count: Duration,
    measure: Duration,
}

/// The run that a child process performs.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    variant: String,
    scene: Scene,
    phases: Phases,
}

fn main() -> ExitCode {
    processes::init();
    let options =
        Options::parse("hop", "Measures a trivial closure's way to another thread and back: latency and throughput");
    let variants = |scene: Scene| {
        let possible = variants::VARIANTS.iter().filter(move |variant| variant.is_possible(&scene));
        possible.map(move |variant| Row::new(variant.name, scene))
    };
    let rows = || Scene::all().into_iter().filter(Scene::is_possible).flat_map(variants).collect();
    options.run("hop", rows, run, |rows| {
        let (rounds, phases) = if options.quick { (2, Phases::SHORT) } else { (7, Phases::LONG) };
        let measure = |phases| {
            move |scene: &Scene, variants: &[&str]| {
                let run = |variant: &&str| {
                    let order = Order { variant: (*variant).to_owned(), scene: *scene, phases };
                    child::run_with_env(&order, Variant::named(variant)?.env, TIMEOUT)
                };
                variants.iter().map(run).collect()
            }
        };
        if !options.quick {
            // The first round after the start is slower, so a rehearsal precedes it.
            interleave(&mut rows.clone(), 1, Unit::Scene, measure(Phases::SHORT))?;
        }
        interleave(rows, rounds, Unit::Scene, measure(phases))?;
        Ok(report::text(rows, rounds, phases.measure))
    })
}

/// Runs one variant in one scene, in a child process.
fn run(order: Order) -> Result<Sample, BoxError> {
    let Order { variant, scene, phases } = order;
    let variant = Variant::named(&variant)?;
    if scene.pin == Pin::One {
        // Pins before any other thread starts, because threads inherit the core.
        platform::pin(*platform::cores().first().ok_or("threads cannot be pinned")?)?;
    }
    let mut builder = match scene.runtime {
        Flavor::CurrentThread => tokio::runtime::Builder::new_current_thread(),
        Flavor::MultiThread => tokio::runtime::Builder::new_multi_thread(),
    };
    if scene.runtime == Flavor::MultiThread {
        builder.worker_threads(THREADS);
    }
    if variant.is_capped {
        builder.max_blocking_threads(scene.threads);
    }
    #[cfg(tokio_unstable)]
    if variant.is_eager {
        builder.enable_eager_driver_handoff();
    }
    let stage = load::Stage { runtime: builder.enable_all().build()?, scene, phases };
    let _guard = stage.runtime.enter();
    (variant.measure)(&stage)
}

impl Scene {
    const fn sequential(runtime: Flavor, pin: Pin) -> Self {
        Self { mode: Mode::Sequential, runtime, pin, concurrency: 1, threads: THREADS }
    }

    const fn throughput(runtime: Flavor, concurrency: usize) -> Self {
        Self { mode: Mode::Throughput, runtime, pin: Pin::None, concurrency, threads: THREADS }
    }

    /// Returns all scenes.
    ///
    /// The scheduler places the threads of a call on one core or on two, and the latency is several
    /// times higher on two. So sequential scenes on `current_thread` are pinned. Those on
    /// `multi_thread` are not, because the runtime alone has more than one thread.
    fn all() -> Vec<Self> {
        let mut scenes = vec![
            Self::sequential(Flavor::CurrentThread, Pin::Cross),
            Self::sequential(Flavor::CurrentThread, Pin::One),
            Self::sequential(Flavor::MultiThread, Pin::None),
        ];
        for runtime in [Flavor::CurrentThread, Flavor::MultiThread] {
            scenes.extend([1, 16, 256, 4096].map(|concurrency| Self::throughput(runtime, concurrency)));
            scenes.push(Self { threads: MANY_THREADS, ..Self::throughput(runtime, 256) });
        }
        scenes
    }

    /// Returns `false` if the scene needs more cores than there are.
    fn is_possible(&self) -> bool {
        let needed = match self.pin {
            Pin::None => 0,
            Pin::Cross => 2,
            Pin::One => 1,
        };
        let cores = platform::cores().len();
        if cores < needed {
            eprintln!("hop: not measured: {self}, which needs {needed} core(s) to pin threads to; there are {cores}");
        }
        cores >= needed
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.mode {
            Mode::Sequential => "sequential, ",
            Mode::Throughput => "throughput, ",
        })?;
        match self.runtime {
            Flavor::CurrentThread => f.write_str("current_thread")?,
            Flavor::MultiThread => write!(f, "multi_thread({THREADS})")?,
        }
        match (self.mode, self.pin) {
            (Mode::Throughput, _) => write!(f, ", {} at once", self.concurrency),
            (_, Pin::None) => f.write_str(", not pinned"),
            (_, Pin::Cross) => f.write_str(", across cores"),
            (_, Pin::One) => f.write_str(", on one core"),
        }?;
        if self.threads == THREADS { Ok(()) } else { write!(f, ", pools of {}", self.threads) }
    }
}

impl Phases {
    const SHORT: Self = Self::of_ms(20, 20, 80);
    const LONG: Self = Self::of_ms(100, 50, 400);

    const fn of_ms(warm_up: u64, count: u64, measure: u64) -> Self {
        let ms = Duration::from_millis;
        Self { warm_up: ms(warm_up), count: ms(count), measure: ms(measure) }
    }
}
