//! Every public function that takes a duration, a number or a text accepts 0, 1, the maximum,
//! an empty value and absurd ones, or refuses them with a message that names the option.
#![cfg(all(feature = "river", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

mod databases;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt::Display,
    fs,
    path::Path,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Uri};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;
use tower_offload::{
    Background, ThreadPool,
    process::{self, Context, ProcessPool, Work},
};
use tower_offload_tasks::{
    AcceptError, Accepted, Failure, MemoryStore, Progress, Record, Retention, SqlStore, SqlStoreBuilder, TaskId,
    TaskState, TaskStore, Tasks, Timestamp,
    jobs::{Backoff, Enqueue, Job, Jobs, JobsBuilder, Schedule, Unique},
    service::Access,
    store::{Epoch, Filter, Found, Lease, Listing, Op, Page, Process, StoreFuture, Swept, Written},
};

use tower_offload_tests::PATIENCE;

use self::databases::OnFile;

/// An error that names the option, or a panic that does.
type Outcome = Result<(), String>;

/// How a function is tried with one value. It asserts what an accepted value does.
enum Try {
    Duration(fn(Duration) -> BoxFuture<'static, Outcome>),
    Number(fn(usize) -> BoxFuture<'static, Outcome>),
    Fraction(fn(f64) -> BoxFuture<'static, Outcome>),
    Text(fn(String) -> BoxFuture<'static, Outcome>),
    Time(fn(SystemTime) -> BoxFuture<'static, Outcome>),
}

/// `name => Kind(|value| future)` for each public function. A new function that is missing here
/// fails `no_public_option_is_missing`.
macro_rules! options {
    ($($name:literal => $kind:ident($try:expr),)*) => {
        &[$(($name, Try::$kind(|value| Box::pin($try(value))))),*]
    };
}

const OPTIONS: &[(&str, Try)] = options! {
    "Tasks::track" => Text(async |name| accepted(&in_memory(), |tasks| tasks.track(name)).await),
    "Tasks::get_named" => Text(get_named),
    "Tasks::shutdown" => Duration(shutdown),
    "TrackBuilder::owner" => Text(async |owner| accepted(&in_memory(), |tasks| tasks.track("a").owner(owner)).await),
    "TrackBuilder::sequence" => Text(async |key| accepted(&in_memory(), |tasks| tasks.track("a").sequence(key)).await),
    "TrackBuilder::timeout" => Duration(timeout),
    "TasksBuilder::base_path" => Text(base_path),
    "TasksBuilder::process" => Text(process),
    "Retention::max_records" => Number(async |limit| retention(Retention::default().max_records(limit), limit > 0).await),
    "Retention::max_age" => Duration(async |age| retention(Retention::default().max_age(age), age > LONG).await),
    "Retention::tombstone_ttl" => Duration(async |ttl| retention(Retention::default().tombstone_ttl(ttl), true).await),
    "MemoryStore::with_capacity" => Number(async |capacity| accepted_by(MemoryStore::with_capacity(capacity)).await),
    "SqlStore::open" => Text(open),
    "SqlStore::open_with_lease" => Duration(open_with_lease),
    "SqlStore::builder" => Text(open),
    "SqlStoreBuilder::lease" => Duration(open_with_lease),
    "SqlStoreBuilder::schema" => Text(schema),
    "SqlStoreBuilder::read_connections" => Number(async |number| store(|store| store.read_connections(number)).await),
    "SqlStoreBuilder::maintenance_connections" => Number(
        async |number| store(|store| store.maintenance_connections(number)).await
    ),
    "SqlStoreBuilder::job_connections" => Number(async |number| store(|store| store.job_connections(number)).await),
    "Lease::renewed_every" => Duration(async |interval| accepted_by(Leased(MemoryStore::new(), interval)).await),
    "Process::new" => Text(begin),
    "Filter::name" => Text(async |name| list(Filter::default().name(name), Page::default()).await),
    "Filter::owner" => Text(async |owner| list(Filter::default().owner(owner), Page::default()).await),
    "Filter::queue" => Text(async |queue| list(Filter::default().queue(queue), Page::default()).await),
    "Filter::text" => Text(async |text| list(Filter::default().text(text), Page::default()).await),
    "Page::first" => Number(async |limit| list(Filter::default(), Page::first(limit)).await),
    "Failure::new" => Text(failure),
    "Record::new" => Text(record),
    "Progress::set" => Fraction(progress),
    "Progress::value" => Fraction(progress),
    "Progress::message" => Text(message),
    "Timestamp::from_millis" => Number(async |millis| timestamp(Timestamp::from_millis(millis as u64))),
    "Timestamp::before" => Duration(async |duration| timestamp(Timestamp::from_millis(1000).before(duration))),
    "Timestamp::after" => Duration(async |duration| timestamp(Timestamp::from_millis(1000).after(duration))),
    "StatusService::keep_alive" => Duration(keep_alive),
    "StatusService::max_wait" => Duration(max_wait),
    "StatusService::max_streams" => Number(max_streams),
    "Jobs::shutdown" => Duration(shutdown_jobs),
    "JobsBuilder::blocking_worker" => Duration(async |timeout| job(
        |jobs| retried_at_once(jobs).blocking_worker(ThreadPool::blocking(1), timeout, |_: Echo, _| Ok::<_, Infallible>(())), |job| job,
    ).await),
    "JobsBuilder::process_worker" => Duration(async |timeout| job(
        |jobs| jobs.process_worker::<Echo>(process_pool(), timeout), |job| job,
    ).await),
    "JobsBuilder::worker" => Duration(async |timeout| job(
        |jobs| retried_at_once(jobs).worker(timeout, async |_: Echo, _| Ok::<_, Infallible>(())), |job| job,
    ).await),
    "JobsBuilder::every" => Text(async |name| job(|jobs| echo(jobs).every(name, LONG, |_| Echo {}), |job| job).await),
    "Schedule::interval" => Duration(async |interval| schedule(Schedule::interval(interval)).await),
    "Schedule::cron" => Text(async |expression: String| schedule(Schedule::cron(&expression)).await),
    "Schedule::time_zone" => Text(async |zone: String| schedule(Schedule::cron("0 3 * * *").time_zone(&zone)).await),
    "Context::step" => Text(step),
    "Context::step_async" => Text(step_async),
    "JobsBuilder::queue" => Text(async |name| job(|jobs| echo(jobs).queue(name, 1), |job| job).await),
    "JobsBuilder::concurrency" => Number(async |limit| job(|jobs| echo(jobs).concurrency(limit), |job| job).await),
    "Backoff::fixed" => Duration(async |delay| job(|jobs| echo(jobs).backoff(Backoff::fixed(delay)), |job| job).await),
    "Backoff::exponential" => Duration(async |delay| job(
        |jobs| echo(jobs).backoff(Backoff::exponential(delay, delay)), |job| job,
    ).await),
    "Unique::within" => Duration(async |period| job(echo, |job| job.unique(Unique::by_kind().within(period))).await),
    "Enqueue::owner" => Text(async |owner| job(echo, |job| job.owner(owner)).await),
    "Enqueue::queue" => Text(queue),
    "Enqueue::max_attempts" => Number(async |attempts| job(echo, |job| job.max_attempts(attempts as u16)).await),
    "Enqueue::priority" => Number(async |priority| job(echo, |job| job.priority(priority as u8)).await),
    "Enqueue::at" => Time(at),
    "Enqueue::delay" => Duration(delay),
    "Enqueue::sequence" => Text(async |key| job(echo, |job| job.sequence(key)).await),
    "Enqueue::at_most" => Number(async |max| {
        job(echo, |job| job.at_most(u32::try_from(max).unwrap_or(u32::MAX), "a")).await
    }),
    "Jobs::release_sequence" => Text(release_sequence),
};

/// Functions that take a value but are no options: they convert or compare it.
const NO_OPTIONS: &[&str] = &[
    "Status::result",
    "TaskId::from_bytes",
    "Json::new",
    "Json::parse",
    "TraceContext::new",
    // `tests/jobs/paused.rs` tries names of queues and kinds that do not exist.
    "Jobs::pause_kind",
    "Jobs::pause_queue",
    "Jobs::resume_kind",
    "Jobs::resume_queue",
];

/// Time that no passing case needs.
const LONG: Duration = Duration::from_secs(60);
/// Time after which a job that must not start has not started.
const A_WHILE: Duration = Duration::from_secs(1);

fn durations() -> Vec<Duration> {
    let (nano, second) = (Duration::from_nanos(1), Duration::from_secs(1));
    let millis = Duration::from_millis(i64::MAX.unsigned_abs());
    vec![
        Duration::ZERO,
        nano,
        second,
        Duration::from_secs(1 << 40),
        millis,
        Duration::from_secs(u64::MAX),
        Duration::MAX,
    ]
}

fn texts() -> Vec<String> {
    let texts =
        ["", " ", "a", "\0", "a\0b", "\n", "\u{7f}", "/", "//", "a b", "%", "?#", "\u{e9}", "\u{1f980}", "' OR 1=1 --"];
    let long = [100, 127, 200, 201, 500, 501, 100_000].map(|bytes| "x".repeat(bytes));
    texts.map(str::to_owned).into_iter().chain(long).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_option_accepts_a_value_or_names_itself() {
    let mut wrong = Vec::new();
    for (name, option) in OPTIONS {
        let tries: Vec<(String, BoxFuture<'static, Outcome>)> = match option {
            Try::Duration(try_it) => durations().into_iter().map(|it| (format!("{it:?}"), lazy(*try_it, it))).collect(),
            Try::Number(try_it) => {
                let numbers = [0, 1, 2, 5, 1000, 32_767, 32_768, 65_535, u32::MAX as usize, usize::MAX];
                numbers.into_iter().map(|it| (it.to_string(), lazy(*try_it, it))).collect()
            }
            Try::Fraction(try_it) => {
                let numbers = [0.0, 1.0, -0.0, -1.0, 2.0, f64::MAX, f64::MIN_POSITIVE, f64::INFINITY, f64::NAN];
                numbers.into_iter().map(|it| (it.to_string(), lazy(*try_it, it))).collect()
            }
            Try::Text(try_it) => {
                texts().into_iter().map(|it| (it.chars().take(20).collect(), lazy(*try_it, it))).collect()
            }
            Try::Time(try_it) => {
                let (epoch, day) = (SystemTime::UNIX_EPOCH, Duration::from_secs(24 * 3600));
                let far = epoch.checked_add(Duration::from_secs(i64::MAX.unsigned_abs() - 1)).unwrap_or(epoch);
                let times = [epoch, epoch - day, SystemTime::now(), SystemTime::now() + day, far];
                times.into_iter().map(|it| (format!("{it:?}"), lazy(*try_it, it))).collect()
            }
        };
        // At the same time, since most of them wait for a database.
        let outcomes = tries.into_iter().map(async |(value, outcome)| {
            let outcome = std::panic::AssertUnwindSafe(outcome).catch_unwind();
            (value, tokio::time::timeout(PATIENCE, outcome).await)
        });
        for (value, outcome) in futures_util::future::join_all(outcomes).await {
            match outcome {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(message))) if names_the_option(name, &message) => {}
                Ok(Ok(Err(message))) => wrong.push(format!("{name}({value:?}): refused with {message:?}")),
                Ok(Err(payload)) => {
                    let text = payload.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                    let text = text.unwrap_or_default();
                    if !(text.starts_with('`') && names_the_option(name, &text)) {
                        wrong.push(format!("{name}({value:?}): panicked with {text:?}"));
                    }
                }
                Err(_) => wrong.push(format!("{name}({value:?}): hangs")),
            }
        }
    }
    let wrong: Vec<String> = wrong.iter().map(|line| line.chars().take(300).collect()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Defers the call, so that its panics are caught like those of the future.
fn lazy<T: Send + 'static>(try_it: fn(T) -> BoxFuture<'static, Outcome>, value: T) -> BoxFuture<'static, Outcome> {
    Box::pin(async move { try_it(value).await })
}

/// A message names an option by the last word of its function, such as `attempts`, or by its kind.
fn names_the_option(function: &str, message: &str) -> bool {
    let words = function.rsplit("::").next().unwrap().split('_');
    let kind = if function.ends_with("track") { "name" } else { "nothing" };
    let url = if function.ends_with("open") || function == "SqlStore::builder" { "sqlite" } else { "nothing" };
    words.chain([kind, url]).any(|word| word.len() > 2 && message.contains(word))
}

/// Collects the public functions with such a parameter from the sources, as `Type::function`.
fn public_options(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            public_options(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut owner = "";
            for (index, line) in text.lines().enumerate() {
                if let Some(rest) = line.strip_prefix("impl") {
                    let rest =
                        if rest.starts_with('<') { rest.split_once("> ").map_or("", |(_, rest)| rest) } else { rest };
                    let name = rest.trim_start().split(['<', ' ', '{']).next().unwrap_or_default();
                    owner = if rest.contains(" for ") { "" } else { name };
                }
                let function = line.trim_start().strip_prefix("pub ").map(|rest| rest.trim_start_matches("async "));
                let Some(function) = function.and_then(|rest| rest.strip_prefix("fn ")) else { continue };
                let text: String = text.lines().skip(index).take(8).collect();
                let Some((_, parameters)) = text.split_once('(') else { continue };
                let parameters = parameters.split([')', '{']).next().unwrap_or_default();
                let kinds =
                    [": Duration", ": usize", ": u8", ": u16", ": u32", ": u64", ": f64", ": SystemTime", "str"];
                let is_option = kinds.iter().any(|kind| parameters.contains(kind)) || parameters.contains("impl Into<");
                let name: String = function.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect();
                if is_option && !owner.is_empty() {
                    found.insert(format!("{owner}::{name}"));
                }
            }
        }
    }
}

#[test]
fn no_public_option_is_missing() {
    let mut found = BTreeSet::new();
    public_options(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let known: BTreeSet<_> = OPTIONS.iter().map(|(name, _)| *name).chain(NO_OPTIONS.iter().copied()).collect();
    // Constructors of errors take a source, which may be any text.
    let missing: Vec<_> =
        found.iter().filter(|name| !known.contains(&***name) && !name.starts_with("StoreError")).collect();
    assert!(found.len() > 30 && missing.is_empty(), "not in OPTIONS: {missing:?}");
}

fn in_memory() -> Tasks {
    Tasks::new(MemoryStore::new())
}

fn done(_: Progress) -> Result<(), Infallible> {
    Ok(())
}

fn refused(error: impl Display) -> String {
    error.to_string()
}

async fn ended(tasks: &Tasks, id: TaskId) -> Record {
    let mut subscription = tasks.subscribe(id).await.unwrap().expect("the task is unknown");
    while subscription.changed().await.unwrap().is_some() {}
    subscription.record().clone()
}

/// A task with this builder succeeds, or is refused as invalid and counted.
async fn accepted(tasks: &Tasks, build: impl FnOnce(&Tasks) -> tower_offload_tasks::TrackBuilder<'_>) -> Outcome {
    match build(tasks).spawn_blocking(&Background::default(), done).await {
        Ok(accepted) => {
            assert_eq!(ended(tasks, accepted.id()).await.state, TaskState::Succeeded);
            Ok(())
        }
        Err(error) => {
            assert!(error.is_invalid() && tasks.stats().rejected == 1, "{error:?}");
            Err(refused(error))
        }
    }
}

async fn accepted_by(store: impl TaskStore) -> Outcome {
    let tasks = Tasks::new(store);
    accepted(&tasks, |tasks| tasks.track("a")).await?;
    assert!(tasks.shutdown(LONG).await.is_clean());
    Ok(())
}

async fn get_named(name: String) -> Outcome {
    let (tasks, background) = (in_memory(), Background::default());
    let task = tasks.track("a").spawn_blocking(&background, done).await.unwrap();
    let found = tasks.get_named(&name, task.id()).await.unwrap();
    assert_eq!(matches!(found, Found::Record(_)), name == "a");
    Ok(())
}

async fn shutdown(timeout: Duration) -> Outcome {
    let (tasks, background) = (in_memory(), Background::default());
    let task = tasks.track("a").spawn_blocking(&background, done).await.unwrap();
    ended(&tasks, task.id()).await;
    let report = tasks.shutdown(timeout).await;
    assert!(report.is_clean() || timeout < LONG, "{report}");
    Ok(())
}

async fn timeout(timeout: Duration) -> Outcome {
    let (tasks, background) = (in_memory(), Background::default());
    let task = tasks.track("a").timeout(timeout).spawn_blocking(&background, done).await.map_err(refused)?;
    let state = ended(&tasks, task.id()).await.state;
    assert!(state == TaskState::Succeeded || state == TaskState::TimedOut && timeout < LONG, "{state}");
    Ok(())
}

async fn base_path(path: String) -> Outcome {
    let tasks = Tasks::builder(MemoryStore::new()).base_path(&path).build();
    let task = tasks.track("a").spawn_blocking(&Background::default(), done).await.unwrap();
    let location = task.location().to_str().unwrap();
    let uri: Uri = location.parse().unwrap();
    let response: http::Response<bytes::Bytes> = tasks.respond(task.clone(), &HeaderMap::new()).await;
    assert_eq!(response.headers()["location"], location);
    assert!(location.starts_with('/') && !location.starts_with("//"), "{location}");
    assert!(uri.path().ends_with(&format!("/{}", task.id())) && uri.query().is_none(), "{location}");
    Ok(())
}

async fn process(name: String) -> Outcome {
    let file = OnFile::fresh();
    let tasks = Tasks::builder(SqlStore::open(&file.url()).await.unwrap()).process(name).build();
    accepted(&tasks, |tasks| tasks.track("a")).await?;
    assert!(tasks.shutdown(LONG).await.is_clean());
    Ok(())
}

/// A finished task is kept or leaves a tombstone; a second process finds the same.
async fn retention(retention: Retention, is_kept: bool) -> Outcome {
    let store = MemoryStore::new();
    let tasks = Tasks::builder(store.clone()).retention(retention).build();
    let task = tasks.track("a").spawn_blocking(&Background::default(), done).await.unwrap();
    ended(&tasks, task.id()).await;
    assert!(tasks.shutdown(LONG).await.is_clean());
    let next = Tasks::builder(store).retention(retention).build();
    next.start().await.unwrap();
    match next.get(task.id()).await.unwrap() {
        Found::Record(_) => {}
        Found::Evicted { .. } => assert!(!is_kept, "{retention:?} evicted a new record"),
        _ => assert!(retention.tombstone_ttl < LONG, "{retention:?} has no tombstone"),
    }
    Ok(())
}

async fn open(url: String) -> Outcome {
    for url in [url.clone(), format!("sqlite:{url}"), format!("postgres:{url}"), format!("postgres://{url}")] {
        // A text that is a file name is opened elsewhere.
        let is_file = url.strip_prefix("sqlite:").is_some_and(|path| !path.contains(['/', '\0']) && !path.is_empty());
        // A text that names a server may be opened or not, depending on the machine.
        if is_file || url.starts_with("postgres://") && url.len() > "postgres://".len() {
            continue;
        }
        let Err(error) = SqlStore::open(&url).await else { panic!("{url:?} is accepted") };
        let source = error.to_string();
        assert!(source.len() < 1000 && !source.is_empty(), "{url:?}: {source}");
    }
    Ok(())
}

async fn open_with_lease(lease: Duration) -> Outcome {
    let file = OnFile::fresh();
    let store = SqlStore::open_with_lease(&file.url(), lease).await.map_err(refused)?;
    accepted_by(store).await?;
    let Some(server) = databases::OnServer::fresh().await else { return Ok(()) };
    let outcome = accepted_by(SqlStore::open_with_lease(&server.url(), lease).await.map_err(refused)?).await;
    // It blocks, which would stop the other values in the middle of their transactions.
    tokio::task::spawn_blocking(|| drop(server)).await.unwrap();
    outcome
}

async fn schema(name: String) -> Outcome {
    tower_offload_tasks::jobs::migration_sql(Some(&name)).map(drop).map_err(refused)
}

async fn store(set: impl FnOnce(SqlStoreBuilder) -> SqlStoreBuilder) -> Outcome {
    let file = OnFile::fresh();
    accepted_by(set(SqlStore::builder(file.url())).open().await.map_err(refused)?).await
}

async fn begin(name: String) -> Outcome {
    let file = OnFile::fresh();
    let store = SqlStore::open(&file.url()).await.unwrap();
    store.begin(&Process::new(name, Timestamp::default())).await.unwrap();
    Ok(())
}

async fn list(filter: Filter, page: Page) -> Outcome {
    let file = OnFile::fresh();
    for tasks in [in_memory(), Tasks::new(SqlStore::open(&file.url()).await.unwrap())] {
        let background = Background::default();
        for _ in 0..3 {
            let task = tasks.track("a").owner("a").spawn_blocking(&background, done).await.unwrap();
            ended(&tasks, task.id()).await;
        }
        let listing = tasks.list(&filter, page).await.unwrap();
        assert!(
            !listing.records.is_empty()
                || filter.name.is_some()
                || filter.owner.is_some()
                || filter.queue.is_some()
                || filter.text.is_some()
                || filter.river_id.is_some()
        );
        assert!(listing.records.iter().all(|record| filter.matches(record)));
    }
    Ok(())
}

async fn failure(text: String) -> Outcome {
    let (tasks, background) = (in_memory(), Background::default());
    let given = text.clone();
    let work = move |_| Err::<(), _>(Failure::new(given.as_str(), given.as_str()));
    let task = tasks.track("a").spawn_blocking(&background, work).await.unwrap();
    let failure = ended(&tasks, task.id()).await.failure.unwrap();
    assert!(failure.class.len() <= 200 && failure.message.len() <= 8192);
    assert!(text.contains('\0') || text.starts_with(&failure.message) && text.starts_with(&failure.class));
    Ok(())
}

async fn record(name: String) -> Outcome {
    let file = OnFile::fresh();
    let store = SqlStore::open(&file.url()).await.unwrap();
    let epoch = store.begin(&Process::new("test", Timestamp::default())).await.unwrap().epoch;
    let record = Record::new(TaskId::from_bytes([1; TaskId::BYTES]), name.as_str(), Timestamp::default());
    assert_eq!(store.write(epoch, &[Op::Accept(Box::new(record))]).await.unwrap(), [Written::Done]);
    let Found::Record(found) = store.get(TaskId::from_bytes([1; TaskId::BYTES])).await.unwrap() else { panic!() };
    assert_eq!(found.name, name.replace('\0', "\u{fffd}"));
    Ok(())
}

async fn progress(value: f64) -> Outcome {
    let (tasks, background) = (in_memory(), Background::default());
    let work = move |progress: Progress| {
        progress.value(value);
        progress.set(value, "message");
        Ok::<_, Infallible>(())
    };
    let task = tasks.track("a").spawn_blocking(&background, work).await.unwrap();
    let record = ended(&tasks, task.id()).await;
    let expected = if value.is_nan() { None } else { Some(value.clamp(0.0, 1.0)) };
    assert_eq!((record.progress, record.message.as_deref()), (expected, Some("message")));
    Ok(())
}

async fn message(text: String) -> Outcome {
    let (tasks, background) = (in_memory(), Background::default());
    let given = text.clone();
    let work = move |progress: Progress| {
        progress.message(given);
        Ok::<_, Infallible>(())
    };
    let task = tasks.track("a").spawn_blocking(&background, work).await.unwrap();
    let message = ended(&tasks, task.id()).await.message.unwrap();
    assert!(message.len() <= 1024 && (text.contains('\0') || text.starts_with(&message)));
    Ok(())
}

fn timestamp(time: Timestamp) -> Outcome {
    assert_eq!(time.to_string().parse(), Ok(time));
    Ok(())
}

/// A service for one task that does not end.
async fn pending() -> (Tasks, Background, Accepted) {
    let (tasks, background) = (in_memory(), Background::default());
    let work = |_| std::future::pending::<Result<(), Infallible>>();
    let task = tasks.track("a").spawn(&background, work).await.unwrap();
    (tasks, background, task)
}

async fn keep_alive(interval: Duration) -> Outcome {
    let (tasks, _background, task) = pending().await;
    let service = tasks.service().keep_alive(interval);
    let response =
        service.oneshot(Request::get(format!("/{}/events", task.id())).body(String::new()).unwrap()).await.unwrap();
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"retry: "), "{first:?}");
    // Polls the timer too.
    while let Ok(Some(frame)) = tokio::time::timeout(Duration::from_millis(20), body.frame()).await {
        let data = frame.unwrap().into_data().unwrap();
        if data.starts_with(b": keep-alive") {
            assert!(interval < LONG);
            break;
        }
    }
    Ok(())
}

async fn max_wait(limit: Duration) -> Outcome {
    let (tasks, _background, task) = pending().await;
    let service = tasks.service().max_wait(limit);
    let request = Request::get(format!("/{}", task.id())).header("prefer", "wait=1");
    let response = service.oneshot(request.body(String::new()).unwrap()).await.unwrap();
    let applied = response.headers()["preference-applied"].to_str().unwrap();
    assert!(response.status() == 200 && applied == format!("wait={}", limit.as_secs().min(1)), "{applied}");
    Ok(())
}

async fn max_streams(limit: usize) -> Outcome {
    let (tasks, _background, task) = pending().await;
    let service = tasks.service().authorize(|_, _| Access::All).max_streams(limit);
    let request = Request::get(format!("/{}/events", task.id())).body(String::new()).unwrap();
    let status = service.oneshot(request).await.unwrap().status();
    assert_eq!(status, if limit == 0 { 503 } else { 200 });
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Echo {}

impl Job for Echo {
    const KIND: &'static str = "echo";
}

impl Work for Echo {
    const KIND: &'static str = <Self as Job>::KIND;
    type Output = ();
    type Error = String;

    fn run(self, _: &Context) -> Result<(), String> {
        Ok(())
    }
}

/// The `main` of worker processes. In an ordinary test run it returns at once.
#[test]
fn process_worker() {
    process::init::<Echo>();
}

/// Returns a pool that all queues share.
fn process_pool() -> ProcessPool {
    static POOL: LazyLock<ProcessPool> = LazyLock::new(|| {
        let arguments = ["process_worker", "--exact", "--nocapture"];
        // An attempt that is late from the start succeeds within the grace period.
        ProcessPool::builder().processes(2).grace(LONG).arguments(arguments).build().unwrap()
    });
    POOL.clone()
}

fn echo(jobs: JobsBuilder) -> JobsBuilder {
    jobs.worker(LONG, async |_: Echo, _| Ok::<_, Infallible>(()))
}

/// A busy machine may delay an attempt for longer than the shortest timeouts.
fn retried_at_once(jobs: JobsBuilder) -> JobsBuilder {
    jobs.backoff(Backoff::fixed(Duration::ZERO))
}

/// Starts a queue and runs a job to its end.
async fn job(
    build: impl FnOnce(JobsBuilder) -> JobsBuilder,
    configure: impl for<'a> FnOnce(Enqueue<'a, Echo>) -> Enqueue<'a, Echo>,
) -> Outcome {
    run_job(build, configure, PATIENCE).await.map(|state| assert!(state.is_final(), "{state}"))
}

/// Returns the final state of a job, or its state after `limit`.
async fn run_job(
    build: impl FnOnce(JobsBuilder) -> JobsBuilder,
    configure: impl for<'a> FnOnce(Enqueue<'a, Echo>) -> Enqueue<'a, Echo>,
    limit: Duration,
) -> Result<TaskState, String> {
    let file = OnFile::fresh();
    let tasks = Tasks::new(SqlStore::open(&file.url()).await.unwrap());
    let jobs = build(Jobs::builder(&tasks)).start().await.map_err(|error| {
        std::error::Error::source(&error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
    })?;
    let accepted: Result<Accepted, AcceptError> = configure(jobs.enqueue(Echo {})).await;
    let state = match accepted {
        Ok(accepted) => {
            let end = tokio::time::Instant::now() + limit;
            loop {
                let record = tasks.get(accepted.id()).await.unwrap().into_record().unwrap();
                if record.state.is_final() || tokio::time::Instant::now() >= end {
                    break Ok(record.state);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Err(error) => {
            assert!(error.is_invalid(), "{error:?}");
            Err(refused(error))
        }
    };
    let report = jobs.shutdown(LONG).await;
    assert!(report.is_clean(), "{report}");
    assert!(tasks.shutdown(LONG).await.is_clean());
    state
}

async fn shutdown_jobs(timeout: Duration) -> Outcome {
    let file = OnFile::fresh();
    let tasks = Tasks::new(SqlStore::open(&file.url()).await.unwrap());
    let jobs = echo(Jobs::builder(&tasks)).start().await.unwrap();
    let report = jobs.shutdown(timeout).await;
    assert!(report.is_clean() || timeout < LONG, "{report}");
    Ok(())
}

async fn release_sequence(key: String) -> Outcome {
    let file = OnFile::fresh();
    let tasks = Tasks::new(SqlStore::open(&file.url()).await.unwrap());
    let jobs = echo(Jobs::builder(&tasks)).start().await.unwrap();
    assert!(!jobs.release_sequence(&key).await.unwrap());
    assert!(jobs.shutdown(LONG).await.is_clean());
    Ok(())
}

/// A job in a queue that no process works stays queued.
async fn queue(name: String) -> Outcome {
    let name: &'static str = name.leak();
    run_job(echo, |job| job.queue(name), A_WHILE).await.map(|state| assert_eq!(state, TaskState::Queued))
}

async fn delay(delay: Duration) -> Outcome {
    let state = run_job(echo, |job| job.delay(delay), A_WHILE).await?;
    assert!(state == TaskState::Queued || delay <= Duration::from_secs(1), "a job delayed by {delay:?} is {state}");
    Ok(())
}

async fn at(time: SystemTime) -> Outcome {
    let is_due = time <= SystemTime::now();
    let state = run_job(echo, |job| job.at(time), A_WHILE).await?;
    assert!(state == TaskState::Queued || is_due, "a job for {time:?} is {state}");
    Ok(())
}

/// Starts a queue with a schedule.
async fn schedule(schedule: Schedule) -> Outcome {
    job(|jobs| echo(jobs).every("a", schedule, |_| Echo {}), |job| job).await
}

async fn step(name: String) -> Outcome {
    let (sender, mut results) = tokio::sync::mpsc::unbounded_channel();
    let work = move |jobs: JobsBuilder| {
        jobs.blocking_worker(ThreadPool::blocking(1), LONG, move |_: Echo, context| {
            let ran = context.step(&name, || Ok::<_, String>(()));
            let _ = sender.send(ran.map_err(|error| error.to_string()));
            Ok::<_, Infallible>(())
        })
    };
    job(work, |job| job).await?;
    results.recv().await.unwrap()
}

async fn step_async(name: String) -> Outcome {
    let (sender, mut results) = tokio::sync::mpsc::unbounded_channel();
    let work = move |jobs: JobsBuilder| {
        jobs.worker(LONG, move |_: Echo, context| {
            let (name, sender) = (name.clone(), sender.clone());
            async move {
                let ran = context.step_async(&name, || async { Ok::<_, String>(()) }).await;
                let _ = sender.send(ran.map_err(|error| error.to_string()));
                Ok::<_, Infallible>(())
            }
        })
    };
    job(work, |job| job).await?;
    results.recv().await.unwrap()
}

/// A store whose leases must be renewed at an interval.
struct Leased(MemoryStore, Duration);

impl TaskStore for Leased {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        Box::pin(async move { Ok(Lease::renewed_every(self.0.begin(process).await?.epoch, self.1)) })
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        self.0.renew(epoch)
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        self.0.end(epoch, now)
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        self.0.write(epoch, batch)
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        self.0.get(id)
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        self.0.list(filter, page)
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        self.0.cancel_requests(epoch)
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        self.0.sweep(now, retention)
    }
}
