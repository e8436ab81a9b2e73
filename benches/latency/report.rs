//! The figures as text.

use crate::latency::{
    plan::{DEADLINE, JOB, OVERLOAD, Scene, TOLERATED_LATENESS, TOLERATED_OTHERS},
    record::Record,
    recovery, table,
};

/// Everything, and what the figures depend on.
pub(crate) fn text(records: &[Record]) -> String {
    let mut paragraphs = vec![facts(records).join("\n") + "\n"];
    paragraphs.extend(table::of_scenes(records).iter().map(table::Table::text));
    paragraphs.push(notes(records).join("\n") + "\n");
    if records.iter().any(|record| record.scene != Scene::Target) {
        paragraphs.push(table::of_goals(records).text());
    }
    paragraphs.join("\n")
}

/// What was measured, and on what.
pub(crate) fn facts(records: &[Record]) -> Vec<String> {
    let Some(conditions) = records.first().map(|record| &record.conditions) else { return Vec::new() };
    let mut facts = vec![format!(
        "{} cores, {}; the generator runs at {}",
        conditions.cores, conditions.system, conditions.priority
    )];
    if let Some(capacity) = conditions.capacity_per_second {
        let after = conditions
            .capacity_after_per_second
            .map_or_else(String::new, |after| format!("; after the last round: {after:.0}"));
        facts.push(format!(
            "100 % is {capacity:.0} jobs of {} ms CPU time a second (closed loop, offload/threads{after}); jobs: {}",
            JOB.as_millis(),
            conditions.arrivals(),
        ));
    }
    facts
}

/// How to read the tables, and what casts doubt on them.
pub(crate) fn notes(records: &[Record]) -> Vec<String> {
    let has = |scene: Scene| records.iter().any(|record| record.scene == scene);
    let mut notes = vec![
        "Medians of the rounds (lowest-highest). Latency counts from the intended start.".to_owned(),
        format!(
            "% within {} ms: of all jobs offered. ok jobs p99: of those answered with a success.",
            DEADLINE.as_millis()
        ),
        "expired: refused because it had waited in the queue for too long; refused: any other answer that is no success.".to_owned(),
        "jobs open: without any answer when the run ended; they are in no other column.".to_owned(),
        "pings open: without a success when the run ended; they count at the age they had then.".to_owned(),
        "late ms: how late the generator itself was, p99 of its worst round.".to_owned(),
    ];
    if has(Scene::Cpu) {
        notes.push(format!(
            "of capacity: jobs answered within {} ms, as a share of what the machine can do in that time.",
            DEADLINE.as_millis()
        ));
    }
    if has(Scene::Target) {
        notes.push("others %: not known, for the server is one of the others.".to_owned());
    } else {
        notes
            .push("others %: what processes that are no part of this had of all cores, in the worst round.".to_owned());
    }
    if has(Scene::Recovery) {
        notes.push(format!(
            "normal after: from the end of the {OVERLOAD} % to the first job from which on the p99 of every {} jobs in a row is \
             at most {} times the p99 before the overload. A job without a success counts as infinitely late. \
             A dash: too few were answered before it to say what is normal.",
            recovery::WINDOW,
            recovery::NORMAL
        ));
    }
    notes.extend(doubts(records));
    notes
}

/// None if all is well.
pub(crate) fn doubts(records: &[Record]) -> Vec<String> {
    let mut doubts = Vec::new();
    if records.iter().any(|record| !record.is_reliable()) {
        doubts.push(format!(
            "! unreliable: the generator itself was over {} ms late (p99) in a round.",
            TOLERATED_LATENESS.as_millis()
        ));
    }
    if records.iter().any(|record| !record.is_undisturbed()) {
        doubts.push(format!("~ disturbed: others had over {TOLERATED_OTHERS:.0} % of the cores in a round."));
    }
    if let Some(drift) = records.first().and_then(|record| record.conditions.drift_percent()) {
        doubts.push(format!(
            "! the capacity moved by {drift:.0} % while this ran: the loads are not what they say. Measure again when the \
             machine is quiet."
        ));
    }
    doubts
}
