use crate::{
    latency::{
        goals::GOALS,
        plan::{Overload, Scene},
        record::Record,
        report,
        spread::{Spread, number, with_range},
        table,
        tally::{End, Fate},
    },
    support::{conditions, fate, ms, part, record, run, tally},
};

/// As many jobs, answered so late.
fn answered(count: usize, latency_ms: u64) -> Vec<Fate> {
    vec![fate(0, latency_ms, End::Answered); count]
}

fn verdict_of(name: &str, records: &[Record]) -> (String, String) {
    let row = table::of_goals(records).rows.into_iter().find(|row| row[0].contains(name)).expect(name);
    (row[3].clone(), row[4].clone())
}

#[test]
fn a_spread_is_the_median_and_its_bounds() {
    let spread = Spread::of([4.0, 1.0, 2.0].into_iter()).unwrap();
    assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 4.0));
    assert_eq!(Spread::of([1.0, 2.0].into_iter()).unwrap().median, 1.5);
    assert_eq!(Spread::of(std::iter::empty()), None);
    assert_eq!(Spread::of([1.0, f64::INFINITY, f64::INFINITY].into_iter()).unwrap().median, f64::INFINITY);
    assert_eq!(with_range(spread), "2.00 (1.00-4.00)");
    assert_eq!([0.5, 12.34, 1234.5, f64::INFINITY].map(number), ["0.50", "12.3", "1234", "never"]);
}

#[test]
fn only_successes_are_answers_and_the_rest_counts_at_its_age() {
    let fates = [
        fate(0, 200, End::Answered),
        fate(0, 201, End::Answered),
        fate(100, 1, End::Refused),
        fate(200, 1, End::Expired),
        fate(300, 1, End::Failed),
        fate(900, 0, End::Open), // younger than the deadline, and no answer all the same
    ];
    let tally = tally(&fates, 1000);
    assert_eq!((tally.offered(), tally.within_deadline()), (6, 1));
    for end in [End::Refused, End::Expired, End::Failed, End::Open] {
        assert_eq!(tally.count(end), 1);
    }
    let ages: Vec<u128> = tally.fates.iter().map(|fate| fate.latency.as_millis()).collect();
    assert_eq!(ages, [200, 201, 900, 800, 700, 100]);
    assert!((899.0..901.0).contains(&tally.latency_ms(1.0)), "{}", tally.latency_ms(1.0));
    assert!((200.0..202.0).contains(&tally.answered_ms(0.99).unwrap()));
    assert_eq!(crate::support::tally(&fates[2..], 1000).answered_ms(0.99), None);
}

#[test]
fn goals_are_judged_by_the_median_of_ratios_within_a_round() {
    let ours = record("offload/threads", 130, &[run(&[1], &[]), run(&[2], &[]), run(&[8], &[])]);
    let inline = record("inline", 130, &[run(&[1000], &[]), run(&[100], &[]), run(&[1000], &[])]);
    let blocking = record("spawn_blocking", 130, &[run(&[1000], &[]), run(&[2000], &[]), run(&[8000], &[])]);
    let records = [ours, inline, blocking];
    let (measured, verdict) = verdict_of("offload/threads v inline", &records);
    assert!(measured.starts_with("0.0080") && verdict == "must met", "{measured}: {verdict}"); // of 0.001, 0.02, 0.008
    assert_eq!(verdict_of("offload/threads v spawn_blocking", &records).1, "aim met");
    assert_eq!(verdict_of("offload/nice", &records), ("-".to_owned(), "not measured".to_owned()));
}

#[test]
fn overload_is_judged_by_what_the_machine_can_do() {
    // 100 jobs are the capacity of the second that a run lasts.
    let of = |count, latency| vec![record("offload/codel", 200, &[run(&[1], &answered(count, latency))])];
    assert_eq!(verdict_of("capacity, offload/codel", &of(97, 30)).1, "aim met");
    assert_eq!(verdict_of("capacity, offload/codel", &of(90, 30)).1, "must met");
    assert_eq!(verdict_of("capacity, offload/codel", &of(89, 30)).1, "NOT MET");
    assert_eq!(verdict_of("capacity, offload/codel", &of(97, 201)).1, "NOT MET");
    assert_eq!(verdict_of("answered, ms, offload/codel", &of(97, 100)).1, "must met");
    let none = vec![record("offload/codel", 200, &[run(&[1], &[fate(0, 1, End::Expired)])])];
    assert_eq!(verdict_of("answered, ms, offload/codel", &none), ("never (never-never)".into(), "NOT MET".into()));
}

#[test]
fn a_goal_in_doubt_is_marked() {
    let mut disturbed = run(&[1], &answered(97, 30));
    disturbed.others = Some(40.0);
    let records = [record("offload/codel", 200, &[disturbed])];
    assert_eq!(verdict_of("capacity, offload/codel", &records).1, "aim met ~");
    assert!(report::text(&records).contains("~ disturbed"));

    let mut drifted = record("offload/codel", 200, &[run(&[1], &answered(97, 30))]);
    drifted.conditions.capacity_after_per_second = Some(50.0);
    assert_eq!(verdict_of("capacity, offload/codel", &[drifted]).1, "aim met ~");
}

#[test]
fn every_goal_has_an_aim_beyond_its_must() {
    for goal in GOALS {
        assert_eq!(goal.verdict(goal.aim), "aim met", "{}", goal.name);
        assert_eq!(goal.verdict(goal.must), "must met", "{}", goal.name);
    }
}

#[test]
fn tables_keep_every_row_sorted_by_load_and_aligned() {
    let one = |variant, load| record(variant, load, &[run(&[1], &answered(3, 5))]);
    let records = [one("inline", 130), one("offload/threads", 130), one("inline", 78)];
    let tables = table::of_scenes(&records);
    let names: Vec<_> = tables[0].rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
    assert_eq!(names, [("inline", "78 %"), ("inline", "130 %"), ("offload/threads", "130 %")]);
    let text = tables[0].text();
    let ends: Vec<_> = text.lines().skip(2).map(|line| line.find(" %").or(line.find("load"))).collect();
    assert!(ends.iter().all(Option::is_some), "{text}");
}

#[test]
fn a_recovery_that_nobody_can_tell_is_not_judged() {
    let mut part = part(Scene::Recovery, 1);
    part.phases.measure = ms(4000);
    part.overload = Some(Overload { after: ms(1000), length: ms(1000) });
    let judged = |every_ms: usize, latency: u64| {
        let jobs: Vec<Fate> = (0..4000)
            .step_by(every_ms)
            .map(|due| fate(due, if due < 1000 { 10 } else { latency }, End::Answered))
            .collect();
        let rates = part.job_rates(Some(78), 100.0);
        let record = Record::of("offload/codel", Some(78), &part, &rates, &[run(&[1], &jobs)], &conditions()).unwrap();
        (
            table::of_scenes(std::slice::from_ref(&record))[0].rows[0][1].clone(),
            verdict_of("until normal, offload/codel", &[record]).1,
        )
    };
    assert_eq!(judged(10, 10), ("0.00".to_owned(), "aim met".to_owned()));
    assert_eq!(judged(10, 40), ("over 2000".to_owned(), "NOT MET".to_owned()));
    assert_eq!(judged(20, 10), ("-".to_owned(), "not measured".to_owned()));
}
