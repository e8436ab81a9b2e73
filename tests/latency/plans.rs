use std::time::Duration;

use crate::{
    latency::{
        arrivals::{Arrivals, Schedule, Step},
        plan::{Overload, Part, Plan, Scene},
        variants,
        work::Work,
    },
    support::{ms, part},
};

fn dues(mut schedule: Schedule, count: usize) -> Vec<Duration> {
    (0..count)
        .map(|_| {
            let due = schedule.next();
            schedule.advance();
            due
        })
        .collect()
}

#[test]
fn a_rate_changes_at_its_step() {
    let steps = vec![
        Step { length: ms(200), per_second: 10.0 },
        Step { length: ms(100), per_second: 50.0 },
        Step { length: Duration::MAX, per_second: 10.0 },
    ];
    let expected = [0, 100, 200, 220, 240, 260, 280, 300, 400, 500].map(ms);
    for (due, expected) in dues(Schedule::stepwise(Arrivals::Constant, steps), expected.len()).into_iter().zip(expected)
    {
        assert!(due.abs_diff(expected) < Duration::from_micros(1), "{due:?} instead of {expected:?}");
    }
}

#[test]
fn random_arrivals_are_the_same_in_every_run_and_as_many_as_they_should_be() {
    let schedule = || dues(Schedule::new(Arrivals::Poisson, 100.0), 1000);
    assert_eq!(schedule(), schedule());
    assert!(schedule().is_sorted());
    let seconds = schedule().last().unwrap().as_secs_f64();
    assert!((9.0..11.0).contains(&seconds), "1000 at 100 a second are due within {seconds} s");
}

#[test]
fn an_overload_begins_after_the_warm_up() {
    let mut part = part(Scene::Recovery, 1);
    part.phases.warm_up = ms(300);
    part.overload = Some(Overload { after: ms(700), length: ms(2500) });
    let rates = part.job_rates(Some(78), 100.0);
    assert_eq!(rates.iter().map(|step| step.per_second).collect::<Vec<_>>(), [78.0, 300.0, 78.0]);
    assert_eq!([rates[0].length, rates[1].length], [ms(1000), ms(2500)]);
}

#[test]
fn every_plan_names_variants_that_there_are_and_ends() {
    for (plan, limit) in [(Plan::quick(), Duration::from_secs(75)), (Plan::full(), Duration::from_secs(15 * 60))] {
        let time_of = |part: &Part| {
            let unknown = part.variants.iter().find(|name| variants::named(name).is_none());
            assert_eq!(unknown, None);
            let run = part.phases.warm_up + part.phases.measure + part.phases.grace;
            run * u32::try_from(part.rounds * part.loads.len() * part.variants.len()).unwrap()
        };
        let total = plan.parts.iter().map(time_of).sum::<Duration>() + plan.capacity * 2;
        assert!(total < limit, "{total:?}");
    }
}

#[test]
fn only_the_scenes_named_are_kept() {
    let scenes = |named: &[Scene]| {
        let mut plan = Plan::quick();
        plan.keep(named);
        plan.parts.iter().map(|part| part.scene).collect::<Vec<_>>()
    };
    assert_eq!(scenes(&[Scene::Sleeping]), [Scene::Sleeping]);
    assert_eq!(scenes(&[]), [Scene::Cpu, Scene::Sleeping, Scene::Recovery]);
}

#[test]
fn work_survives_the_way_to_the_server() {
    for work in [Work::Compute { iterations: 7 }, Work::Sleep { milliseconds: 50 }] {
        assert_eq!(work.to_string().parse::<Work>().unwrap(), work);
    }
    for nonsense in ["", "7", "sleep", "sleep:-1", "dream:7"] {
        assert!(nonsense.parse::<Work>().is_err(), "{nonsense}");
    }
}
