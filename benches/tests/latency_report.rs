//! Runs the example `latency_report` as a program. Cargo builds the examples before it runs the
//! tests.

#![allow(clippy::unwrap_used)]

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
};

/// Returns `None` if the example is not built, which happens with `cargo test --test`.
fn run(arguments: &[&str]) -> Option<Output> {
    let test = env::current_exe().unwrap();
    let program =
        test.ancestors().nth(2).unwrap().join("examples/latency_report").with_extension(env::consts::EXE_EXTENSION);
    program.exists().then(|| Command::new(program).args(arguments).output().unwrap())
}

#[test]
fn help_lists_the_options_and_a_missing_file_is_an_error() {
    let Some(help) = run(&["--help"]) else { return };
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let options = [
        "--full",
        "--from <FILE>",
        "--output <FILE>",
        "--json <FILE>",
        "--no-recovery",
        "--no-fairness",
        "latency.html",
    ];
    for option in options {
        assert!(help.contains(option), "{option} in {help}");
    }
    assert!(!help.contains("ORDER"), "the role of child processes is hidden: {help}");

    let missing = run(&["--from", "there-is-no-such-file"]).unwrap();
    assert_eq!(missing.status.code(), Some(1));
    let error = String::from_utf8_lossy(&missing.stderr);
    assert!(error.starts_with("error: cannot read there-is-no-such-file: "), "{error}");
}

/// Makes a page from files with these contents, and returns the output of the program and the page.
fn page_of(name: &str, contents: &[String]) -> Option<(Output, String)> {
    let folder = env::temp_dir().join(format!("tower-offload-report-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let output = folder.join("page.html");
    let mut arguments = vec!["--output".to_owned(), output.to_str().unwrap().to_owned()];
    for (index, text) in contents.iter().enumerate() {
        let input = folder.join(format!("{index}.json"));
        fs::write(&input, text).unwrap();
        arguments.extend(["--from".to_owned(), input.to_str().unwrap().to_owned()]);
    }
    let outcome = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let page = fs::read_to_string(&output).unwrap_or_default();
    fs::remove_dir_all(&folder).unwrap();
    Some((outcome?, page))
}

fn figures(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)).unwrap()
}

#[test]
fn a_page_is_made_from_the_figures_of_earlier_runs() {
    let hostile = figures("figures.json").replace("offload/rayon", "<script>&");
    let Some((outcome, page)) = page_of("both", &[hostile, figures("fairness.json")]) else { return };
    assert!(outcome.status.success(), "{outcome:?}");
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(said.ends_with("page.html\n") && said.contains("\nwritten to "), "{said}");

    let names =
        ["inline", "spawn_blocking", "offload/threads", "offload/codel", "&lt;script&gt;&amp;", "groups", "fifo"];
    for name in names {
        assert!(page.contains(&format!("<th scope=\"row\">{name}</th>")), "{name}");
        assert!(page.matches(name).count() > 1, "{name} in a picture too");
    }
    for part in ["prefers-color-scheme: dark", "Goal and verdict", "NOT MET", "How they were measured", "Linux"] {
        assert!(page.contains(part), "{part}");
    }
    for scene in ["Jobs that compute", "A temporary overload", "A quiet tenant beside a greedy one"] {
        assert!(page.contains(&format!("<h2>{scene}</h2>")), "{scene}");
    }
    assert_eq!(page.matches("<svg ").count(), 4);
    for resource in ["<script", "<link", "<img", "src=", "@import", "url("] {
        assert!(!page.contains(resource), "the page must not contain {resource}");
    }
    assert_tags_match(&page);
}

#[test]
fn a_page_may_have_the_scenes_of_one_benchmark_only() {
    let Some((outcome, page)) = page_of("fairness", &[figures("fairness.json")]) else { return };
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(page.contains("A quiet tenant beside a greedy one") && !page.contains("/ping"));
    assert_tags_match(&page);

    let (_, page) = page_of("latency", &[figures("figures.json")]).unwrap();
    assert!(page.contains("A temporary overload") && !page.contains("A quiet tenant"));
    assert_tags_match(&page);
}

#[test]
fn rows_of_another_benchmark_are_an_error() {
    let rows = figures("fairness.json").replace("\"fairness\"", "\"hop\"");
    let Some((outcome, _)) = page_of("hop", &[rows]) else { return };
    assert_eq!(outcome.status.code(), Some(1));
    let error = String::from_utf8_lossy(&outcome.stderr);
    assert!(error.contains("line 1: rows of `hop` are not on this page"), "{error}");
}

/// Asserts that every tag is closed, in the right order.
fn assert_tags_match(page: &str) {
    let mut open = Vec::new();
    for tag in page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap();
        match tag {
            _ if tag.starts_with('!') || tag.ends_with('/') || name == "meta" => {}
            _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "</{name}>"),
            _ => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
}
