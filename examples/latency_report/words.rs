//! The figures in a sentence.

use crate::latency::{plan::Scene, record::Record, spread::number};

/// What it comes to, for somebody who reads nothing else: at the highest load at which there are both, the event loop that
/// computes beside one whose work is on a pool. The figures say it, whoever comes out well.
pub(crate) fn summary(records: &[Record]) -> String {
    let at = |name: &str, load: Option<u32>| {
        records.iter().find(|it| it.scene == Scene::Cpu && it.variant == name && it.load_pct == load)
    };
    let both = |record: &&Record| {
        record.scene == Scene::Cpu && record.variant == "offload/threads" && at("inline", record.load_pct).is_some()
    };
    let ours = records.iter().filter(both).max_by_key(|record| record.load_pct);
    let Some((ours, inline)) = ours.and_then(|ours| Some((ours, at("inline", ours.load_pct)?))) else {
        return match records {
            [only] => format!("99 of 100 pings were answered within {} ms.", number(only.ping_p99_ms)),
            _ => {
                "How long a ping takes while the same server does heavy work, for each way to run the work.".to_owned()
            }
        };
    };
    format!(
        "With {} % of the work that this machine can do, 99 of 100 pings took at most {} when handlers computed on the event \
         loop, and at most {} when a pool did.",
        ours.load_pct.unwrap_or_default(),
        time(inline.ping_p99_ms),
        time(ours.ping_p99_ms)
    )
}

fn time(milliseconds: f64) -> String {
    if milliseconds < 1e3 { format!("{} ms", number(milliseconds)) } else { format!("{:.1} s", milliseconds / 1e3) }
}
