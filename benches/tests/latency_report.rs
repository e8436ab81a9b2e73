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
    for option in ["--full", "--from <FILE>", "--output <FILE>", "--json <FILE>", "--no-recovery", "latency.html"] {
        assert!(help.contains(option), "{option} in {help}");
    }
    assert!(!help.contains("ORDER"), "the role of child processes is hidden: {help}");

    let missing = run(&["--from", "there-is-no-such-file"]).unwrap();
    assert_eq!(missing.status.code(), Some(1));
    let error = String::from_utf8_lossy(&missing.stderr);
    assert!(error.starts_with("error: cannot read there-is-no-such-file: "), "{error}");
}

#[test]
fn a_page_is_made_from_the_figures_of_an_earlier_run() {
    let figures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/figures.json");
    let folder = std::env::temp_dir().join(format!("tower-offload-report-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let hostile = fs::read_to_string(&figures).unwrap().replace("offload/rayon", "<script>&");
    let input = folder.join("figures.json");
    fs::write(&input, &hostile).unwrap();
    let output = folder.join("page.html");
    let arguments = [Path::new("--from"), &input, Path::new("--output"), &output].map(|it| it.to_str().unwrap());
    let outcome = run(&arguments);
    let page = fs::read_to_string(&output);
    fs::remove_dir_all(&folder).unwrap();
    let Some(outcome) = outcome else { return };
    assert!(outcome.status.success(), "{outcome:?}");
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(said.ends_with(&format!("written to {}\n", output.display())), "{said}");

    let page = page.unwrap();
    for name in ["inline", "spawn_blocking", "offload/threads", "offload/codel", "&lt;script&gt;&amp;"] {
        assert!(page.contains(&format!("<th scope=\"row\">{name}</th>")), "{name}");
        assert!(page.matches(name).count() > 1, "{name} in a picture too");
    }
    for part in ["prefers-color-scheme: dark", "Goals", "NOT MET", "How it was measured", "Linux"] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<svg ").count(), 3);
    for resource in ["<script", "<link", "<img", "src=", "@import", "url("] {
        assert!(!page.contains(resource), "the page must not contain {resource}");
    }
    assert_tags_match(&page);
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
