//! Every store does the same: random operations have equal results in memory, in SQLite and in
//! Postgres.

use std::{collections::BTreeSet, time::Duration};

use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use tower_offload_tasks::{
    Failure, Json, MemoryStore, Reason, Record, Retention, SqlStore, TaskState, TaskStore, Timestamp,
    store::{Epoch, Filter, Op, Page, Written},
};

use super::{
    databases::{OnFile, OnServer},
    store_suite::{begin, found, id, now},
};

/// Number of tasks and of epochs.
const TASKS: u16 = 5;
const EPOCHS: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    Write { epoch: usize, ops: Vec<(u16, Change)> },
    Requests { epoch: usize },
    List { filter: Filter, limit: usize, after: Option<u16> },
    Sweep { max_records: usize },
    End { epoch: usize },
    Renew { epoch: usize },
}

#[derive(Debug, Clone)]
enum Change {
    Accept(Version),
    Update(Version),
    /// A request whose time is this many seconds after the creation of the task.
    Cancel(i64),
}

/// The fields of a record that differ between versions.
#[derive(Debug, Clone)]
struct Version {
    state: TaskState,
    version: u64,
    text: &'static str,
    progress: Option<f64>,
    json: &'static str,
    has_owner: bool,
    is_cancelled: bool,
}

const TEXTS: &[&str] = &["a", "A", "a ", "\u{e9}", "e\u{301}", "\u{1f980}\u{fffd}", "O'Brien -- %_\\", "\n\t\u{7f}"];
const JSON: &[&str] = &[
    "1",
    "-0.0",
    "1e400",
    "18446744073709551616",
    "0.10",
    " {\"b\" : 1, \"a\":2, \"b\":3} ",
    "\"\\u0000\\ud83e\\udd80\"",
    "[[[[]]]]",
];

fn versions() -> impl Strategy<Value = Version> {
    let progress = select(vec![None, Some(0.0), Some(0.1 + 0.2), Some(f64::MIN_POSITIVE), Some(1.0)]);
    let flags = (any::<bool>(), any::<bool>());
    // A final record changes no more, so most are unfinished.
    let state = prop_oneof![
        3 => Just(TaskState::Queued),
        3 => Just(TaskState::Running),
        2 => select(&TaskState::ALL[..]),
    ];
    (state, 1_u64..8, select(TEXTS), progress, select(JSON), flags).prop_map(
        |(state, version, text, progress, json, (has_owner, is_cancelled))| Version {
            state,
            version,
            text,
            progress,
            json,
            has_owner,
            is_cancelled,
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = prop_oneof![
        3 => versions().prop_map(Change::Accept),
        4 => versions().prop_map(Change::Update),
        1 => (-30_i64..3).prop_map(Change::Cancel),
    ];
    let ops = prop::collection::vec((1..=TASKS, change), 0..5);
    let filter = prop_oneof![
        Just(Filter::default()),
        Just(Filter::default().unowned()),
        select(TEXTS).prop_map(|name| Filter::default().name(name)),
        select(TEXTS).prop_map(|owner| Filter::default().owner(owner)),
        select(&TaskState::ALL[..]).prop_map(|state| Filter::default().state(state).state(TaskState::Queued)),
    ];
    let list = (filter, select(vec![0, 1, 2, 3, 1000, usize::MAX]), prop::option::of(0..=TASKS + 1));
    let step = prop_oneof![
        12 => (0..EPOCHS, ops).prop_map(|(epoch, ops)| Step::Write { epoch, ops }),
        2 => (0..EPOCHS).prop_map(|epoch| Step::Requests { epoch }),
        3 => list.prop_map(|(filter, limit, after)| Step::List { filter, limit, after }),
        2 => (0_usize..4).prop_map(|max_records| Step::Sweep { max_records }),
        1 => (0..EPOCHS).prop_map(|epoch| Step::End { epoch }),
        1 => (0..EPOCHS).prop_map(|epoch| Step::Renew { epoch }),
    ];
    prop::collection::vec(step, 1..20)
}

fn record(number: u16, version: &Version, at: Timestamp) -> Record {
    let mut record = Record::new(id(number), version.text, at);
    (record.state, record.version, record.progress) = (version.state, version.version, version.progress);
    record.message = (!version.has_owner).then(|| version.text.to_owned());
    record.owner = version.has_owner.then(|| version.text.to_owned());
    if version.state != TaskState::Queued {
        (record.attempt, record.started_at) = (1, Some(at));
    }
    record.cancel_requested_at = version.is_cancelled.then_some(at);
    if version.state.is_final() {
        record.finished_at = Some(at);
    }
    match version.state {
        TaskState::Succeeded => record.result = Some(Json::try_from(version.json.to_owned()).unwrap()),
        TaskState::Failed => record.failure = Some(Failure::new(version.text, version.text)),
        TaskState::Cancelled => record.reason = Some(Reason::Requested),
        _ => {}
    }
    record
}

/// Executes the steps, and returns what each of them did, as text.
async fn run(store: &impl TaskStore, steps: &[Step], start: Timestamp) -> Vec<String> {
    let mut epochs: Vec<Epoch> = Vec::new();
    for _ in 0..EPOCHS {
        epochs.push(begin(store).await);
    }
    let (mut has_ended, mut requested, mut outcomes) = (false, BTreeSet::new(), Vec::new());
    for (index, step) in (0..).zip(steps) {
        let at = start.after(Duration::from_secs(index * 10));
        let outcome = match step {
            Step::Write { epoch, ops } => {
                let (mut ids, mut has_final) = (BTreeSet::new(), false);
                // No id occurs twice in a batch. Records that end in one batch have no order.
                let ops = ops.iter().filter(|(number, change)| {
                    let is_final = matches!(change, Change::Accept(it) | Change::Update(it) if it.state.is_final());
                    ids.insert(*number) && !(is_final && std::mem::replace(&mut has_final, true))
                });
                let ops = ops.map(|(number, change)| match change {
                    Change::Accept(version) => Op::Accept(Box::new(record(*number, version, at))),
                    Change::Update(version) => Op::Update(Box::new(record(*number, version, at))),
                    Change::Cancel(delay) => {
                        let (delay, from) = (Duration::from_secs(delay.unsigned_abs()), *delay);
                        Op::RequestCancel {
                            id: id(*number),
                            now: if from < 0 { at.before(delay) } else { at.after(delay) },
                        }
                    }
                });
                let ops: Vec<_> = ops.collect();
                let written = store.write(epochs[*epoch], &ops).await.unwrap();
                let done = ops
                    .iter()
                    .zip(&written)
                    .filter(|(op, written)| matches!(op, Op::RequestCancel { .. }) && **written == Written::Done);
                requested.extend(done.map(|(op, _)| op.id()));
                format!("{written:?}")
            }
            Step::Requests { epoch } => {
                // A store may omit a request that the owner has written itself.
                let requests: BTreeSet<_> = store.cancel_requests(epochs[*epoch]).await.unwrap().into_iter().collect();
                format!("{:?}", requests.intersection(&requested).collect::<Vec<_>>())
            }
            Step::List { filter, limit, after } => {
                let mut page = Page::default();
                (page.limit, page.after) = (*limit, after.map(id));
                let listing = store.list(filter, page).await.unwrap();
                let ids: Vec<_> = listing.records.iter().map(|record| record.id).collect();
                format!("{ids:?} {:?}", listing.next)
            }
            // The records of an epoch that ended at once have no order.
            Step::Sweep { .. } if has_ended => continue,
            Step::Sweep { max_records } => {
                let retention = Retention::default().max_records(*max_records);
                format!("{:?}", store.sweep(now(), &retention).await.unwrap().evicted)
            }
            Step::End { epoch } => {
                has_ended = true;
                format!("{:?}", store.end(epochs[*epoch], at).await)
            }
            Step::Renew { epoch } => format!("{}", store.renew(epochs[*epoch]).await.unwrap()),
        };
        outcomes.push(format!("{step:?}: {outcome}"));
        for number in 1..=TASKS {
            let found = match found(store, number).await {
                // The server's clock says when they were lost.
                Some(record) if record.reason == Some(Reason::ProcessLost) => {
                    format!("lost, version {}, {:?}", record.version, record.cancel_requested_at)
                }
                Some(record) => format!("{record:?}"),
                None => format!("{:?}", store.get(id(number)).await.unwrap()),
            };
            outcomes.push(found);
        }
    }
    for epoch in epochs {
        store.end(epoch, now()).await.unwrap();
    }
    outcomes
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Compares two stores. `clear` prepares the second one, and returns it.
fn compare<S: TaskStore>(cases: u32, runtime: &tokio::runtime::Runtime, clear: impl AsyncFn() -> S) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let compared = TestRunner::new(config).run(&steps(), |steps| {
        let (expected, actual) = runtime.block_on(async {
            let store = clear().await;
            let start = now().before(Duration::from_secs(1000));
            (run(&MemoryStore::new(), &steps, start).await, run(&store, &steps, start).await)
        });
        let first = expected.iter().zip(&actual).position(|(one, other)| one != other);
        let first = first.map(|index| format!("\n{}\n{}", expected[index], actual[index]));
        prop_assert!(first.is_none() && expected.len() == actual.len(), "{}", first.unwrap_or_default());
        Ok(())
    });
    compared.unwrap();
}

#[test]
fn sqlite_does_the_same_as_memory() {
    let runtime = runtime();
    let files = std::cell::RefCell::new(Vec::new());
    compare(32, &runtime, async || {
        let file = OnFile::fresh();
        let store = SqlStore::open(&file.url()).await.unwrap();
        files.borrow_mut().push(file);
        store
    });
}

#[test]
fn postgres_does_the_same_as_memory() {
    let runtime = runtime();
    let Some(server) = runtime.block_on(OnServer::fresh()) else { return };
    let store = runtime.block_on(SqlStore::open(&server.url())).unwrap();
    compare(32, &runtime, async || {
        let clear = "TRUNCATE tower_offload_process, tower_offload_task, tower_offload_tombstone";
        sqlx::raw_sql(clear).execute(&mut server.connect().await).await.unwrap();
        store.clone()
    });
}
