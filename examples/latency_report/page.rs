//! The page: no scripts, nothing to fetch.

use crate::{
    latency::{
        picture::Picture,
        plan::{DEADLINE, JOB, PING_RATE, Scene},
        record::Record,
        report,
        table::{self, Table},
    },
    words,
};

const STYLE: &str = include_str!("style.css");
const TITLE: &str = "What /ping feels while the server computes";

pub(crate) fn of(records: &[Record], pictures: &[Picture]) -> String {
    let doubts = report::doubts(records);
    let doubts =
        if doubts.is_empty() { String::new() } else { format!("<div class=\"doubt\">{}</div>\n", paragraphs(&doubts)) };
    let tables: String = table::of_scenes(records).iter().map(|table| section(table, "figures")).collect();
    let has_goals = records.iter().any(|record| record.scene != Scene::Target);
    let goals = if has_goals { section(&table::of_goals(records), "goals") } else { String::new() };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{TITLE}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{TITLE}</h1>\n\
         <p class=\"summary\">{summary}</p>\n<div class=\"facts\">{facts}</div>\n{doubts}{pictures}{tables}{goals}\
         <section>\n<h2>How to read this</h2>\n<div class=\"notes\">{notes}</div>\n</section>\n\
         <section>\n<h2>How it was measured</h2>\n<div class=\"notes\">{method}</div>\n</section>\n</main>\n</body>\n</html>\n",
        summary = escaped(&words::summary(records)),
        facts = paragraphs(&report::facts(records)),
        pictures = pictures.iter().map(figure).collect::<String>(),
        notes = paragraphs(&report::notes(records)),
        method = paragraphs(&method(has_goals)),
    )
}

/// `ours` says whether the servers were the benchmark's own.
fn method(ours: bool) -> [String; 3] {
    let servers = if ours {
        format!(
            "Each row is a server process of its own: axum on a tokio runtime with as many workers as cores. It answers /ping at \
             once, {PING_RATE:.0} times a second, and does a job for /job. A computing job is a fixed amount of work, {} ms of an \
             idle core.",
            JOB.as_millis()
        )
    } else {
        "The server is the user's own, and so are the requests that are called jobs here; the facts above say how many of each \
         were offered."
            .to_owned()
    };
    let turns = if ours { "Rows of one scene take turns, round by round. " } else { "" };
    [
        servers,
        format!(
            "The load is open loop: requests start when they are due, whatever became of those before, and latency counts from \
             then. A job that is not answered within {} ms was of no use to its caller. The generator is a process of its own.",
            DEADLINE.as_millis()
        ),
        format!(
            "{turns}Nothing is left out: rows that we lose stay in. Measured with `cargo bench --bench latency` of \
             tower-offload; its benches/README.md lists the traps and what is done about them."
        ),
    ]
}

fn section(table: &Table, class: &str) -> String {
    let head: String = table.columns.iter().map(|name| format!("<th scope=\"col\">{}</th>", escaped(name))).collect();
    let rows: String = table.rows.iter().map(|row| line(row)).collect();
    format!(
        "<section>\n<h2>{}</h2>\n<div class=\"table\"><table class=\"{class}\">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\
         </tbody>\n</table></div>\n</section>\n",
        escaped(&table.heading)
    )
}

fn line(row: &[String]) -> String {
    let cells = row.iter().enumerate().map(|(place, cell)| {
        let text = escaped(cell);
        match place {
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
    // What may stand before it in a file may not stand in a page.
    let svg = picture.svg.find("<svg").map_or("", |start| &picture.svg[start..]);
    let svg = svg.replacen("<svg", &format!("<svg role=\"img\" aria-label=\"{caption}\""), 1);
    format!("<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>\n")
}

fn paragraphs(lines: &[String]) -> String {
    lines.iter().map(|line| format!("<p>{}</p>", escaped(line))).collect()
}

/// Names come from a file that anybody may have written.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, character| {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
        escaped
    })
}
