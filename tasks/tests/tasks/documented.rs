//! The tables of events and numbers in the README are complete.

use std::{collections::BTreeSet, fs, path::Path};

use tower_offload_tasks::{TasksStats, jobs::JobsStats};

const README: &str = include_str!("../../README.md");
const LEVELS: [&str; 5] = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];

/// Returns the rows of the tables of tasks and of jobs, as cells.
fn rows() -> [Vec<Vec<&'static str>>; 2] {
    let section = README.split("## Events and numbers").nth(1).unwrap().split("\n## ").next().unwrap();
    let table = |first: &str| {
        let table = section.split(first).nth(1).unwrap().split("\n\n").next().unwrap();
        let rows = table.lines().skip(2);
        rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect::<Vec<Vec<_>>>()
    };
    let tables = [table("| what happened |"), table("| what happened to a job |")];
    assert!(tables.iter().flatten().all(|row| row.len() == 4), "{tables:?}");
    tables
}

/// Returns the source files of the crate, without tests.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push(text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned());
        }
    }
}

fn all_sources() -> Vec<String> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// Returns the string literals of a piece of code, with `..` for each value in them.
fn literals(code: &str) -> Vec<String> {
    let (mut literals, mut rest) = (Vec::new(), code);
    while let Some((_, from)) = rest.split_once('"') {
        let mut end = from.find('"').unwrap_or(from.len());
        while from[..end].ends_with('\\') {
            end += 1 + from[end + 1..].find('"').unwrap();
        }
        let lines: Vec<_> = from[..end].split("\\\n").enumerate().collect();
        let text: String =
            lines.iter().map(|(index, line)| if *index == 0 { line } else { line.trim_start() }).collect();
        let mut literal = String::new();
        for (index, part) in text.split(['{', '}']).enumerate() {
            literal += if index % 2 == 0 { part } else { ".." };
        }
        literals.push(literal);
        rest = &from[end + 1..];
    }
    literals
}

/// Returns the level and the message of each event of the crate.
fn events() -> BTreeSet<(String, String)> {
    let mut events = BTreeSet::new();
    for text in all_sources() {
        for level in LEVELS {
            let name = level.to_lowercase();
            let starts = [format!("tracing::{name}!("), format!(" {name}!("), format!("Level::{level},")];
            for code in starts.iter().flat_map(|start| text.split(start.as_str()).skip(1)) {
                let code = if text.contains("tracing") { code } else { continue };
                let mut depth = 1;
                let end = code.find(|it| {
                    depth += i32::from(it == '(') - i32::from(it == ')');
                    depth == 0
                });
                let message = literals(&code[..end.unwrap()]).pop().expect("an event without a message");
                events.insert((level.to_owned(), message));
            }
        }
    }
    events
}

/// Returns the level and the beginning of the message of each event in the tables.
fn documented_events() -> BTreeSet<(String, String)> {
    let mut events = BTreeSet::new();
    for cell in rows().iter().flatten().map(|row| row[1]) {
        for level in LEVELS {
            for rest in cell.split(&format!("`{level}` ")).skip(1) {
                let message = rest.strip_prefix('"').unwrap_or_else(|| panic!("{cell}: no message"));
                events.insert((level.to_owned(), message.split('"').next().unwrap().to_owned()));
            }
        }
    }
    events
}

#[test]
fn every_event_is_in_the_table_and_the_reverse() {
    let (events, documented) = (events(), documented_events());
    assert!(events.len() > 25, "{events:?}");
    let is_same = |(level, text): &(String, String), (other, start): &(String, String)| {
        level == other && (text == start || start.len() > 10 && text.starts_with(start.as_str()))
    };
    let missing: Vec<_> = events.iter().filter(|event| !documented.iter().any(|it| is_same(event, it))).collect();
    assert!(missing.is_empty(), "not in the README: {missing:#?}");
    let unknown: Vec<_> = documented.iter().filter(|it| !events.iter().any(|event| is_same(event, it))).collect();
    assert!(unknown.is_empty(), "only in the README: {unknown:#?}");
}

#[test]
fn every_metric_is_in_the_table_and_the_reverse() {
    for (rows, prefix) in rows().iter().zip(["offload_tasks_", "offload_jobs_"]) {
        let mut metrics = BTreeSet::new();
        for text in all_sources() {
            for rest in text.split(&format!("\"{prefix}")).skip(1) {
                metrics.insert(rest.split('"').next().unwrap().to_owned());
            }
        }
        let cells = rows.iter().filter(|row| row[3].starts_with('`')).map(|row| row[3].split('`').nth(1).unwrap());
        let documented: BTreeSet<_> = cells.map(str::to_owned).collect();
        assert!(metrics.len() > 8);
        assert_eq!(metrics, documented);
    }
}

#[test]
fn every_counter_is_in_the_table_and_the_reverse() {
    let fields = |debug: String| -> BTreeSet<String> {
        let fields = debug.split(['{', ',']).skip(1).map(|field| field.split(':').next().unwrap().trim().to_owned());
        fields.collect()
    };
    let stats = [fields(format!("{:?}", TasksStats::default())), fields(format!("{:?}", JobsStats::default()))];
    for (rows, fields) in rows().iter().zip(stats) {
        let names = rows.iter().map(|row| row[2].split('`').nth(1).unwrap_or_default().to_owned());
        let documented: BTreeSet<_> = names.filter(|name| !name.is_empty() && name != "BackgroundStats").collect();
        assert!(fields.len() > 8);
        assert_eq!(fields, documented);
    }
}
