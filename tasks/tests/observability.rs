//! The Grafana board and the alert rules use numbers that a program exports, and the tables of the
//! documentation list all of them. The recorder is global, because pools have threads.
#![allow(clippy::unwrap_used)]

mod databases;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{
    SqlStore, Tasks,
    jobs::{Job, Jobs},
};
use tower_offload_tests::eventually;
use yaml_rust2::{Yaml, YamlLoader};

use self::databases::OnFile;

static RECORDER: LazyLock<PrometheusHandle> =
    LazyLock::new(|| PrometheusBuilder::new().set_buckets(&[0.1, 1.0]).unwrap().install_recorder().unwrap());

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("observability")
}

#[derive(Serialize, Deserialize)]
struct Report;

impl Job for Report {
    const KIND: &'static str = "report";
}

/// Runs a job and a background task. Returns what Prometheus scrapes: the labels of each time
/// series by its name.
async fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let (recorder, file) = (&*RECORDER, OnFile::fresh());
    let tasks = Tasks::new(SqlStore::open(&file.url()).await.unwrap());
    let work = |_: Report, _| Ok::<_, Infallible>(());
    let builder = Jobs::builder(&tasks).blocking_worker(ThreadPool::blocking(1), Duration::from_secs(60), work);
    let jobs = builder.start().await.unwrap();
    let background = Background::default();
    background.task("task").spawn_blocking(|| ()).unwrap();
    assert!(background.shutdown(Duration::from_secs(60)).await.is_clean());
    let _accepted = jobs.enqueue(Report).await.unwrap();
    eventually("the job ends", async || jobs.stats().succeeded == 1).await;
    assert!(jobs.shutdown(Duration::from_secs(60)).await.is_clean());
    let mut exported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in recorder.render().lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, labels) = line.split_once(['{', ' ']).unwrap();
        let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        exported.entry(name.to_owned()).or_default().extend(labels);
    }
    exported
}

/// Returns the values of `key` anywhere in a JSON value.
fn values<'a>(json: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match json {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            found.extend((name == key).then_some(value));
            values(value, key, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| values(item, key, found)),
        _ => {}
    }
}

fn board() -> Value {
    serde_json::from_str(&fs::read_to_string(folder().join("board.json")).unwrap()).unwrap()
}

/// Returns the rules of the alerts.
fn rules() -> Vec<Yaml> {
    let files = YamlLoader::load_from_str(&fs::read_to_string(folder().join("alerts.yaml")).unwrap()).unwrap();
    let groups = files[0]["groups"].as_vec().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_vec().unwrap().clone()).collect()
}

/// Returns the queries of the board and of the alerts.
fn queries() -> Vec<String> {
    let board = board();
    let mut found = Vec::new();
    values(&board, "expr", &mut found);
    let of_board = found.iter().map(|expr| expr.as_str().unwrap().to_owned());
    of_board.chain(rules().iter().map(|rule| rule["expr"].as_str().unwrap().to_owned())).collect()
}

/// Returns the words of a query.
fn words(query: &str) -> impl Iterator<Item = &str> {
    query.split(|it: char| !it.is_ascii_alphanumeric() && it != '_').filter(|word| !word.is_empty())
}

#[tokio::test]
async fn board_and_alerts_use_what_a_program_exports() {
    let (exported, queries) = (exported().await, queries());
    assert!(queries.len() > 30);
    for query in queries {
        let names: Vec<_> = words(&query).filter(|word| word.starts_with("offload_")).collect();
        assert!(!names.is_empty(), "{query}");
        let mut labels = BTreeSet::from(["instance", "le"].map(str::to_owned)); // of Prometheus, of histograms
        for name in names {
            labels.extend(exported.get(name).unwrap_or_else(|| panic!("{name} in {query}")).iter().cloned());
        }
        let grouped = query.split("by (").skip(1).flat_map(|by| words(by.split(')').next().unwrap()));
        let selected = query.split('{').skip(1).flat_map(|rest| rest.split('}').next().unwrap().split(','));
        let selected = selected.map(|label| label.split(['=', '!']).next().unwrap().trim());
        for label in grouped.chain(selected) {
            assert!(labels.contains(label), "label {label} in {query}: {labels:?}");
        }
    }
}

#[test]
fn board_can_be_imported() {
    let board = board();
    assert!(["title", "uid", "schemaVersion", "panels", "templating"].iter().all(|field| !board[field].is_null()));
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in board["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "two panels at {cell:?}: {panel}");
        }
        if panel["type"] != "row" {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty() && panel["description"].as_str().unwrap().ends_with('.'), "{panel}");
            assert!(targets.iter().all(|target| target["legendFormat"].is_string()), "{panel}");
        }
    }
}

#[test]
fn alerts_say_what_to_do() {
    let mut names = BTreeSet::new();
    for rule in rules() {
        let text = |value: &Yaml| value.as_str().unwrap_or_else(|| panic!("{rule:?}")).to_owned();
        assert!(names.insert(text(&rule["alert"])), "{rule:?}");
        assert!(["warning", "critical"].contains(&&*text(&rule["labels"]["severity"])), "{rule:?}");
        text(&rule["annotations"]["summary"]);
        assert!(text(&rule["annotations"]["description"]).ends_with('.'), "{rule:?}");
    }
    assert!(names.len() > 10);
}

#[test]
fn no_query_needs_both_a_queue_and_a_store() {
    // A process without a job queue exports no numbers of jobs, and a sum with a number that does
    // not exist is empty.
    for query in queries() {
        for side in query.split(" or ") {
            let uses = |prefix| words(side).any(|word| word.starts_with(prefix));
            assert!(!(uses("offload_jobs_") && uses("offload_tasks_")), "{query}");
        }
    }
}

/// Runs `promtool`, unless it is not installed.
fn promtool(command: [&str; 2], file: &Path) {
    // Not `skip`: CI does not install Prometheus, of which only this tool is needed.
    match Command::new("promtool").args(command).arg(file).output() {
        Ok(checked) => assert!(
            checked.status.success(),
            "{}{}",
            String::from_utf8_lossy(&checked.stdout),
            String::from_utf8_lossy(&checked.stderr)
        ),
        Err(_) => eprintln!("skipped: promtool is not installed; it is part of Debian's package `prometheus`"),
    }
}

#[test]
fn promtool_accepts_the_alerts() {
    promtool(["check", "rules"], &folder().join("alerts.yaml"));
}

#[test]
fn alerts_fire_when_they_must() {
    promtool(["test", "rules"], &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/alerts.yaml"));
}

/// Returns the texts of the files below a folder with this extension.
fn texts(folder: &Path, extension: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts(&path, extension, found);
        } else if path.extension().is_some_and(|other| other == extension) {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_number_of_both_packages_is_documented() {
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    texts(&tasks.join("src"), "rs", &mut sources);
    texts(&tasks.join("../src"), "rs", &mut sources);
    // `offload_worker` is a field of an event.
    let is_name = |name: &&str| name.starts_with("offload_") && words(name).eq([*name]) && *name != "offload_worker";
    let recorded: BTreeSet<_> = sources.iter().flat_map(|text| text.split('"').filter(is_name)).collect();
    // A table has names in backticks. That of the jobs and tasks omits the prefix of its column.
    let readme = fs::read_to_string(tasks.join("README.md")).unwrap();
    let rows = readme.lines().filter(|line| line.starts_with('|'));
    let last =
        rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next()?.split('`').nth(1).map(str::to_owned));
    let of_tasks = last.flat_map(|name| ["offload_tasks_", "offload_jobs_"].map(|prefix| format!("{prefix}{name}")));
    let comments = comments_of(&sources);
    let others = readme.split('`').filter(is_name).map(str::to_owned).chain(comments.iter().cloned());
    let documented: BTreeSet<String> = of_tasks.chain(others).collect();
    let missing: Vec<_> = recorded.iter().filter(|name| !documented.contains(**name)).collect();
    assert!(recorded.len() > 50 && missing.is_empty(), "not in a table: {missing:?}");
    let unknown: Vec<_> = comments.iter().filter(|name| !recorded.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "only in a table: {unknown:?}");
}

/// Returns the names in the tables of the module documentation.
fn comments_of(sources: &[String]) -> Vec<String> {
    let lines = sources.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with("//! | `offload_"));
    lines.map(|line| line.split('`').nth(1).unwrap().to_owned()).collect()
}
