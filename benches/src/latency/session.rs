//! A session: calibrates the job, measures the capacity, then all rows, then the capacity again.

use std::time::Duration;

use super::{
    Arrivals, JOB, OVERLOAD_PCT, Overload, PING_RATE, Row, SLEEPING_JOB, SLEEPING_RATE, Sample, Scene, Setting,
    TOLERATED_LATENESS,
    client::Request,
    generator::{self, Step, Stream},
    plan::Plan,
    server::{ServerProcess, Work},
};
use crate::{BoxError, Unit, find, interleave, platform};

/// The variant whose capacity is 100 %. All variants get the same number of jobs per second.
const YARDSTICK: &str = "offload/threads";

/// Measures all rows. `descriptors` is the number of file descriptors that may be open.
pub fn measure(rows: &mut [Row], plan: Plan, arrivals: Arrivals, descriptors: usize) -> Result<(), BoxError> {
    if rows.is_empty() {
        return Err("none of these variants takes part in these scenes; `--list` prints the rows".into());
    }
    let computation = Work::lasting(JOB);
    let measure_capacity = || {
        let server = ServerProcess::start(YARDSTICK, computation, false)?;
        generator::measure_capacity(server.address, Duration::from_millis(plan.capacity_ms))
    };
    let capacity = measure_capacity()?;
    let priority = generator::with_priority(platform::raise_priority);
    eprintln!("latency: {capacity:.0} jobs per second are 100 %; {computation:?}; the generator has {priority}");
    for setting in rows.iter_mut().map(|row| &mut row.scene) {
        // The load of a server with one core is relative to that core.
        let share = if setting.scene == Scene::Quota { 1.0 / platform::parallelism() as f64 } else { 1.0 };
        let load = |load| capacity * share * f64::from(load) / 100.0;
        setting.jobs_per_second = setting.load_pct.map_or(SLEEPING_RATE, load);
        setting.conditions.poisson = arrivals == Arrivals::Poisson;
        setting.conditions.capacity_per_second = Some(capacity);
        setting.conditions.priority = priority.to_owned();
    }
    let mut repeats = plan.repeats;
    for rows in rows.chunk_by_mut(|a, b| (a.scene.scene, a.scene.round_count) == (b.scene.scene, b.scene.round_count)) {
        interleave(rows, rows[0].scene.round_count, Unit::Row, |setting, variants| {
            let run = || measure_once(setting, variants[0], computation, arrivals, descriptors);
            let mut sample = run()?;
            // Repeats the run if the generator was too late to judge the server, and keeps the
            // sample with less lateness.
            if repeats > 0 && sample.generator_late_p99_ms > TOLERATED_LATENESS.as_secs_f64() * 1e3 {
                repeats -= 1;
                eprintln!(
                    "latency: {} again, because the generator was {:.1} ms late",
                    variants[0], sample.generator_late_p99_ms
                );
                let second = run()?;
                if second.generator_late_p99_ms <= sample.generator_late_p99_ms {
                    sample = second;
                }
            }
            Ok(vec![sample])
        })?;
    }
    set_goodput(rows);
    let after = measure_capacity()?;
    rows.iter_mut().for_each(|row| row.scene.conditions.capacity_after_per_second = Some(after));
    Ok(())
}

/// Compares what each row did during the overload with the yardstick, whose queue is full then, so
/// that its threads are never idle. Round by round, because the capacity of a machine changes from
/// minute to minute.
fn set_goodput(rows: &mut [Row]) {
    let Some(full) = find(rows, |setting| setting.scene == Scene::Recovery, YARDSTICK) else { return };
    let full: Vec<_> = full.rounds.iter().map(|round| round.sample.overload_ended).collect();
    for row in rows.iter_mut().filter(|row| row.scene.scene == Scene::Recovery) {
        for (round, full) in row.rounds.iter_mut().zip(&full) {
            let in_time = round.sample.overload_in_time.zip(full.filter(|full| *full > 0));
            round.sample.goodput_pct = in_time.map(|(in_time, full)| 100.0 * in_time as f64 / full as f64);
        }
    }
}

fn measure_once(
    setting: &Setting,
    variant: &str,
    computation: Work,
    arrivals: Arrivals,
    descriptors: usize,
) -> Result<Sample, BoxError> {
    let work = match setting.scene {
        Scene::Sleeping => Work::Sleep { milliseconds: SLEEPING_JOB.as_millis().try_into()? },
        Scene::Cpu | Scene::Recovery | Scene::Quota | Scene::Target => computation,
    };
    let mut server = ServerProcess::start(variant, work, setting.scene == Scene::Quota)?;
    let pings = Stream::constant(Request::get("/ping"), PING_RATE);
    let jobs = Stream::new(Request::get("/job"), arrivals, job_rates(setting));
    let observation = generator::run(server.address, [pings, jobs], setting.phases, descriptors)?;
    server.check_alive()?;
    let throttled_periods = if setting.scene == Scene::Quota { server.throttled_periods() } else { None };
    Ok(Sample { throttled_periods, ..Sample::of(&observation, setting) })
}

/// Returns the rates of jobs before, during and after an overload, or the only rate.
fn job_rates(setting: &Setting) -> Vec<Step> {
    let usual = |length| Step { length, per_second: setting.jobs_per_second };
    match setting.overload {
        None => vec![usual(Duration::MAX)],
        Some(Overload { after_ms, length_ms }) => {
            let capacity = setting.conditions.capacity_per_second.unwrap_or_default();
            let overload = capacity * f64::from(OVERLOAD_PCT) / 100.0;
            vec![
                usual(Duration::from_millis(setting.phases.warm_up_ms + after_ms)),
                Step { length: Duration::from_millis(length_ms), per_second: overload },
                usual(Duration::MAX),
            ]
        }
    }
}
