//! The page. It has no scripts and fetches nothing.

use tower_offload_benches::{
    BoxError, Part, Picture, Table, fairness, find,
    latency::{JOB, JOB_TIMEOUT, PING_RATE, Row, Sample, Scene, report},
    number,
};

use crate::Figures;

const STYLE: &str = include_str!("style.css");
const TITLE: &str = "Latency while a server computes";

pub(crate) fn of(Figures { latency, fairness }: &Figures) -> Result<String, BoxError> {
    let doubts = report::doubts(latency);
    let doubts =
        if doubts.is_empty() { String::new() } else { format!("<div class=\"doubt\">{}</div>\n", paragraphs(&doubts)) };
    let mut parts = report::parts(latency)?;
    parts.extend(fairness::part(fairness)?);
    let contents: String = parts.iter().enumerate().map(|(index, part)| entry(index, part)).collect();
    let has_own_servers = latency.iter().any(|row| row.scene.scene != Scene::Target);
    let how = if latency.is_empty() {
        String::new()
    } else {
        format!(
            "<section>\n<h2>How to read the figures of /ping</h2>\n<div class=\"notes\">{}</div>\n</section>\n\
             <section>\n<h2>How they were measured</h2>\n<div class=\"notes\">{}</div>\n</section>\n",
            paragraphs(&report::notes(latency)),
            paragraphs(&method(has_own_servers)),
        )
    };
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{TITLE}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{TITLE}</h1>\n\
         <p class=\"summary\">{summary}</p>\n<div class=\"facts\">{facts}</div>\n{doubts}<ul class=\"contents\">\n{contents}</ul>\n\
         {parts}{how}</main>\n</body>\n</html>\n",
        summary = escaped(
            &[summary(latency), fairness::summary(fairness)].into_iter().flatten().collect::<Vec<_>>().join(" ")
        ),
        facts = paragraphs(&report::facts(latency)),
        parts = parts.iter().enumerate().map(|(index, part)| section(index, part)).collect::<String>(),
    ))
}

/// Returns a line of the list of scenes: the heading and the verdict.
fn entry(index: usize, part: &Part) -> String {
    let verdict = part.goals.as_ref().map(|goals| format!(": {}", escaped(&count(goals)))).unwrap_or_default();
    format!("<li><a href=\"#part-{index}\">{}</a>{verdict}</li>\n", escaped(part.heading))
}

/// Returns what was done, the pictures, the tables, and the goals with the verdict.
fn section(index: usize, part: &Part) -> String {
    let Part { heading, done, goal, pictures, tables, goals, notes } = part;
    let goals = goals.as_ref().map(|goals| {
        let verdict = format!("{} {}", goal, verdict(goals));
        format!("<h3>Goal and verdict</h3>\n<p class=\"text\">{}</p>\n{}", escaped(&verdict), table(goals, "goals"))
    });
    format!(
        "<section id=\"part-{index}\">\n<h2>{heading}</h2>\n<p class=\"text\">{done}</p>\n{pictures}{tables}\
         <div class=\"notes\">{notes}</div>\n{goals}</section>\n",
        heading = escaped(heading),
        done = escaped(done),
        pictures = pictures.iter().map(figure).collect::<String>(),
        tables = tables
            .iter()
            .map(|it| format!("<h3>{}</h3>\n{}", escaped(&it.heading), table(it, "figures")))
            .collect::<String>(),
        notes = paragraphs(notes),
        goals = goals.unwrap_or_default(),
    )
}

/// Returns the verdicts of all goals that were measured.
fn verdicts(goals: &Table) -> impl Iterator<Item = (&[String], &str)> {
    let rows = goals.rows.iter().filter_map(|row| Some((row.as_slice(), row.last()?.as_str())));
    rows.filter(|(_, verdict)| !verdict.starts_with("not measured"))
}

fn count(goals: &Table) -> String {
    let met = verdicts(goals).filter(|(_, verdict)| !verdict.starts_with("NOT MET")).count();
    format!("{met} of {} goals met", verdicts(goals).count())
}

/// Returns the verdict in plain words, with the goals that were not met.
fn verdict(goals: &Table) -> String {
    let missed = verdicts(goals).filter(|(_, verdict)| verdict.starts_with("NOT MET"));
    let missed: Vec<String> =
        missed.map(|(row, _)| format!("{}: {} instead of {}", row[0], row[3], limit(&row[1]))).collect();
    let missed = if missed.is_empty() { String::new() } else { format!(" Not met: {}.", missed.join("; ")) };
    format!("In this run: {}.{missed}", count(goals))
}

fn limit(cell: &str) -> String {
    cell.replace("<=", "at most").replace(">=", "at least")
}

/// Returns the result in one sentence. It compares `inline` with `offload/threads` at the highest
/// load that was measured for both.
fn summary(rows: &[Row]) -> Option<String> {
    let at = |variant: &str, load: u32| {
        let row = find(rows, |it| it.scene == Scene::Cpu && it.load_pct == Some(load), variant)?;
        Some(p99(row))
    };
    let loads = rows.iter().filter_map(|row| row.scene.load_pct);
    let both = loads.filter_map(|load| Some((load, at("inline", load)?, at("offload/threads", load)?)));
    Some(match (both.max_by_key(|(load, ..)| *load), rows) {
        (_, []) => return None,
        (Some((load, inline, ours)), _) => format!(
            "With {load} % of the work that this machine can do, 99 of 100 pings took at most {} when handlers computed on \
             the event loop, and at most {} when a pool did.",
            time(inline),
            time(ours)
        ),
        (None, [row]) => format!("99 of 100 pings were answered within {} ms.", number(p99(row))),
        (None, _) => "How long a ping takes while the same server does heavy work.".to_owned(),
    })
}

fn p99(row: &Row) -> f64 {
    row.spread(|sample: &Sample| sample.ping_p99_ms).map_or(f64::NAN, |spread| spread.median)
}

fn time(milliseconds: f64) -> String {
    if milliseconds < 1e3 { format!("{} ms", number(milliseconds)) } else { format!("{:.1} s", milliseconds / 1e3) }
}

/// Returns the description of the method. `has_own_servers` is `false` if the user runs the server.
fn method(has_own_servers: bool) -> [String; 3] {
    let (servers, turns) = if has_own_servers {
        let servers = format!(
            "Each row is a server process: axum on a tokio runtime with as many workers as cores. It answers \
             /ping at once, {PING_RATE:.0} times per second, and does a job for /job. A computing job is a fixed amount of \
             work, {} ms of an idle core.",
            JOB.as_millis()
        );
        (servers, "Rows of one scene take turns, round by round. ")
    } else {
        let servers = "The user runs the server and chooses the requests that are called jobs here.";
        (servers.to_owned(), "")
    };
    [
        servers,
        format!(
            "The load is open loop: requests start when they are due, even if earlier ones are still open, and latency counts \
             from then. A job that is not answered within {} ms is of no use to its caller. The generator is a process of \
             its own.",
            JOB_TIMEOUT.as_millis()
        ),
        format!(
            "{turns}Nothing is left out: rows that we lose stay in. Measured with `cargo bench --bench latency` of \
             tower-offload; its benches/README.md lists the traps and how it avoids them."
        ),
    ]
}

fn table(table: &Table, class: &str) -> String {
    let head: String = table.columns.iter().map(|name| format!("<th scope=\"col\">{}</th>", escaped(name))).collect();
    let rows: String = table.rows.iter().map(|row| line(row)).collect();
    format!(
        "<div class=\"table\"><table class=\"{class}\">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

fn line(row: &[String]) -> String {
    let cells = row.iter().enumerate().map(|(column, cell)| {
        let text = escaped(cell);
        match column {
            0 => format!("<th scope=\"row\">{text}</th>"),
            _ if cell.starts_with("NOT MET") => format!("<td class=\"missed\">{text}</td>"),
            _ if cell.contains(" met") => format!("<td class=\"met\">{text}</td>"),
            _ => format!("<td>{text}</td>"),
        }
    });
    format!("<tr>{}</tr>\n", cells.collect::<String>())
}

fn figure(picture: &Picture) -> String {
    let caption = escaped(&picture.caption);
    // A file may begin with a declaration that a page must not contain.
    let svg = picture.svg.find("<svg").map_or("", |start| &picture.svg[start..]);
    let svg = svg.replacen("<svg", &format!("<svg role=\"img\" aria-label=\"{caption}\""), 1);
    format!("<figure>\n<div class=\"picture\">{svg}</div>\n<figcaption>{caption}</figcaption>\n</figure>\n")
}

fn paragraphs(lines: &[String]) -> String {
    lines.iter().map(|line| format!("<p>{}</p>", escaped(line))).collect()
}

/// Escapes a text for HTML. Names may come from a file of unknown origin.
fn escaped(text: &str) -> String {
    let replacements = [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&quot;"), ("'", "&#39;")];
    replacements.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
