#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use riverqueue::jiff::{SignedDuration, Timestamp, civil::date, tz::TimeZone};

use super::{CatchUp, Due, Schedule};

/// Zones whose clocks are set by an hour, half an hour, a day, or never.
const ZONES: [&str; 6] =
    ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo", "UTC"];

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn ticks(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
    let mut ticks = vec![at(after)];
    for _ in 0..count {
        ticks.push(schedule.next(ticks[ticks.len() - 1]).unwrap());
    }
    ticks.iter().skip(1).map(ToString::to_string).collect()
}

#[test]
fn skipped_time_ticks_later_and_repeated_time_ticks_once() {
    let schedule = Schedule::cron("30 2 * * *").time_zone("Europe/Berlin");
    let spring = ["2026-03-28T01:30:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"];
    assert_eq!(ticks(&schedule, "2026-03-27T12:00:00Z", 3), spring);
    assert_eq!(ticks(&schedule, "2026-03-29T01:15:00Z", 1), spring[1..2], "it is 3:15, and 2:30 has not ticked");
    let autumn = ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"];
    assert_eq!(ticks(&schedule, "2026-10-23T12:00:00Z", 3), autumn);
    assert_eq!(ticks(&schedule, "2026-10-25T01:00:00Z", 1), autumn[2..], "it is 2:00 for the second time");
}

#[test]
fn half_an_hour_that_is_skipped_keeps_the_order_of_ticks() {
    // At 2:00 the clock is set to 2:30.
    let schedule = Schedule::cron("20,40 2 * * *").time_zone("Australia/Lord_Howe");
    let expected = ["2026-10-03T15:40:00Z", "2026-10-03T15:50:00Z", "2026-10-04T15:20:00Z"];
    assert_eq!(ticks(&schedule, "2026-10-03T12:00:00Z", 3), expected);
}

#[test]
fn restricted_days_and_names_are_those_of_cron() {
    let schedule = Schedule::cron("0 9 13 * fri");
    let expected = ["2026-02-06T09:00:00Z", "2026-02-13T09:00:00Z", "2026-02-20T09:00:00Z"];
    assert_eq!(ticks(&schedule, "2026-02-01T00:00:00Z", 3), expected);
    assert_eq!(ticks(&Schedule::cron("@daily"), "2026-02-01T00:00:00Z", 1), ["2026-02-02T00:00:00Z"]);
    assert_eq!(ticks(&Schedule::cron("0 0 29 2 *"), "2026-02-01T00:00:00Z", 1), ["2028-02-29T00:00:00Z"]);
}

#[test]
fn invalid_schedules_are_refused_with_a_reason() {
    let now = at("2026-01-01T00:00:00Z");
    let refused = |schedule: Schedule| schedule.validate(now).unwrap_err();
    for (schedule, reason) in [
        (Schedule::cron("0 3 * *"), "exactly 5 fields"),
        (Schedule::cron("60 3 * * *"), "above maximum"),
        (Schedule::cron("0 3 1/4294967295 * *"), "numbers of 3 digits"),
        (Schedule::cron(&"0".repeat(201)), "200 bytes"),
        (Schedule::cron("TZ=Europe/Berlin 0 3 * * *"), "Schedule::time_zone"),
        (Schedule::cron("@every 5m"), "Schedule::interval"),
        (Schedule::cron("0 0 30 2 *"), "matches no time"),
        (Schedule::cron("0 3 * * *").time_zone("Europe/Atlantis"), "Europe/Atlantis"),
        (Schedule::interval(Duration::from_secs(60)).time_zone("UTC"), "no time zone"),
        (Schedule::interval(Duration::from_millis(999)), "between 1s and"),
        (Schedule::interval(Duration::MAX), "between 1s and"),
        (Schedule::cron("* * * * *").catch_up(CatchUp::All(0)), "between 1 and 1000"),
        (Schedule::cron("* * * * *").catch_up(CatchUp::All(1001)), "between 1 and 1000"),
    ] {
        let error = refused(schedule);
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(Schedule::cron("* * * * *").catch_up(CatchUp::All(1000)).validate(now), Ok(()));
}

#[test]
fn missed_ticks_are_made_up_as_the_policy_says() {
    let minutely = || Schedule::cron("* * * * *");
    let (last, now) = (at("1970-01-01T00:00:00Z"), at("2026-01-01T00:10:30Z"));
    let minutes = |range: std::ops::RangeInclusive<i64>| {
        range.map(|minute| at("2026-01-01T00:00:00Z") + SignedDuration::from_mins(minute)).collect::<Vec<_>>()
    };
    let due = |catch_up, last, now| minutely().catch_up(catch_up).due(last, now);
    let latest = at("2026-01-01T00:10:00Z");
    assert_eq!(due(CatchUp::Once, last, now), Some(Due { ticks: minutes(10..=10), last: latest }));
    assert_eq!(due(CatchUp::All(3), last, now), Some(Due { ticks: minutes(8..=10), last: latest }));
    assert_eq!(due(CatchUp::All(1000), last, now).unwrap().ticks, minutes(-989..=10));
    assert_eq!(due(CatchUp::Skip, last, now), Some(Due { ticks: minutes(10..=10), last: latest }));
    let yearly = Schedule::cron("@yearly").catch_up(CatchUp::All(100)).due(last, now).unwrap();
    assert_eq!((yearly.ticks.len(), yearly.ticks[0]), (56, at("1971-01-01T00:00:00Z")));
    let hourly = Schedule::cron("0 * * * *").catch_up(CatchUp::Skip);
    assert_eq!(hourly.due(last, now), Some(Due { ticks: Vec::new(), last: at("2026-01-01T00:00:00Z") }));
    for catch_up in [CatchUp::Skip, CatchUp::Once, CatchUp::All(9)] {
        assert_eq!(due(catch_up, latest, now), None);
        assert_eq!(due(catch_up, at("2026-07-01T00:00:00Z"), now), None, "the clock was set back");
    }
}

fn times() -> impl Strategy<Value = Timestamp> {
    (946_684_800_i64..2_082_758_400).prop_map(|second| Timestamp::from_second(second).unwrap())
}

/// Times near those at which clocks are set.
fn times_in(zone: &'static str) -> impl Strategy<Value = Timestamp> {
    let zone = TimeZone::get(zone).unwrap();
    let near = (times(), -100_000_i64..100_000).prop_map(move |(time, seconds)| {
        let set_at = zone.following(time).next().map_or(time, |transition| transition.timestamp());
        set_at + SignedDuration::from_secs(seconds)
    });
    prop_oneof![times(), near]
}

fn zones_and_times() -> impl Strategy<Value = (&'static str, Timestamp)> {
    prop::sample::select(&ZONES[..]).prop_flat_map(|zone| (Just(zone), times_in(zone)))
}

proptest! {
    /// A time of day ticks once on each date of the calendar.
    #[test]
    fn fixed_time_ticks_on_each_date((zone, after) in zones_and_times(), hour in 0_i8..24, minute in 0_i8..60) {
        let schedule = Schedule::cron(&format!("{minute} {hour} * * *")).time_zone(zone);
        let zone = TimeZone::get(zone).unwrap();
        let today = after.to_zoned(zone.clone()).date();
        let expected = (-3..=3).filter_map(|days| {
            let date = today.checked_add(SignedDuration::from_hours(24 * days)).unwrap();
            let tick = zone.to_ambiguous_zoned(date.at(hour, minute, 0, 0)).compatible().unwrap().timestamp();
            (tick > after).then_some(tick)
        });
        prop_assert_eq!(schedule.next(after), expected.min());
    }

    /// Elapsed time decides, also when clocks are set.
    #[test]
    fn wild_schedule_ticks_regularly((zone, after) in zones_and_times(), minutes in prop::sample::select(&[5_i64, 15, 30][..])) {
        let schedule = Schedule::cron(&format!("*/{minutes} * * * *")).time_zone(zone);
        let period = minutes * 60;
        let expected = (after.as_second().div_euclid(period) + 1) * period;
        prop_assert_eq!(schedule.next(after), Some(Timestamp::from_second(expected).unwrap()));
    }

    /// The next tick does not depend on when one looks, so every process finds the same ticks.
    #[test]
    fn next_tick_stays_the_same_until_it_is_reached(
        (zone, after) in zones_and_times(),
        minutes in prop::collection::vec(0_u8..60, 1..4),
        hours in prop::collection::vec(0_u8..24, 1..4),
        part in 0.0_f64..1.0,
    ) {
        let list = |values: &[u8]| values.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
        let schedule = Schedule::cron(&format!("{} {} * * *", list(&minutes), list(&hours))).time_zone(zone);
        let next = schedule.next(after).unwrap();
        prop_assert!(next > after && next.duration_since(after) < SignedDuration::from_hours(50));
        let between = after + SignedDuration::from_secs_f64(next.duration_since(after).as_secs_f64() * part);
        if between < next {
            prop_assert_eq!(schedule.next(between), Some(next));
        }
    }

    /// Processes look at any times, by a clock that may be set. `last` is the row that they share.
    #[test]
    fn tick_is_enqueued_at_most_once_and_in_order(
        looks in prop::collection::vec(-4000_i64..20_000, 1..40),
        catch_up in prop_oneof![Just(CatchUp::Skip), Just(CatchUp::Once), (1_u16..50).prop_map(CatchUp::All)],
    ) {
        let schedule = Schedule::cron("*/5 * * * *").time_zone("Europe/Berlin").catch_up(catch_up);
        let start = at("2026-03-28T22:00:00Z");
        let (mut last, mut now, mut latest, mut enqueued) = (start, start, start, Vec::new());
        for seconds in looks {
            now += SignedDuration::from_secs(seconds);
            let Some(due) = schedule.due(last, now) else {
                prop_assert!(schedule.next(last).unwrap() > now);
                continue;
            };
            prop_assert!(due.last > last && due.last <= now);
            prop_assert!(schedule.next(due.last).unwrap() > now, "a tick is left");
            match catch_up {
                CatchUp::All(max) => prop_assert!((1..=usize::from(max)).contains(&due.ticks.len())),
                CatchUp::Once => prop_assert_eq!(&due.ticks, &[due.last]),
                CatchUp::Skip => {
                    let is_late = now.duration_since(due.last) > SignedDuration::from_mins(1);
                    prop_assert_eq!(due.ticks.is_empty(), is_late);
                }
            }
            last = due.last;
            latest = latest.max(now);
            enqueued.extend(due.ticks);
        }
        prop_assert!(enqueued.is_sorted_by(|one, next| one < next));
        if catch_up == CatchUp::All(49) && latest.duration_since(start) < SignedDuration::from_mins(200) {
            let all = (latest.as_second() - start.as_second()) / 300;
            prop_assert_eq!(enqueued.len(), usize::try_from(all).unwrap());
        }
    }
}

#[test]
fn date_that_a_zone_has_skipped_has_no_tick_of_its_own() {
    let schedule = Schedule::cron("0 12 * * *").time_zone("Pacific/Apia");
    let zone = TimeZone::get("Pacific/Apia").unwrap();
    let noon = |day| zone.to_zoned(date(2011, 12, day).at(12, 0, 0, 0)).unwrap().timestamp();
    assert_eq!(schedule.next(noon(29)), Some(noon(31)));
}
