//! One session: the conditions it found, and all its runs in their order.

use std::time::Instant;

use crate::latency::{
    BoxError,
    arrivals::{Arrivals, Schedule},
    bystanders::Usage,
    capacity,
    client::Order,
    conditions::Conditions,
    generator::{self, Stream},
    plan::{JOB, PING_RATE, Part, Plan, SLEEPING_JOB, Scene, TOLERATED_LATENESS},
    platform,
    process::ServerProcess,
    record::{self, Record},
    rows::{Row, Run},
    stop::Stop,
    variants::{self, Variant},
    work::Work,
};

/// The pool whose capacity the loads are percentages of. Every variant then gets the same number of jobs a second.
const YARDSTICK: &str = "offload/threads";

pub(crate) struct Session<'a> {
    plan: Plan,
    conditions: Conditions,
    /// Jobs a second that are 100 %.
    capacity: f64,
    computation: Work,
    max_connections: usize,
    stop: &'a Stop,
    begin: Instant,
}

impl<'a> Session<'a> {
    /// Calibrates the job and measures the capacity.
    pub(crate) fn start(plan: Plan, descriptors: usize, stop: &'a Stop) -> Result<Self, BoxError> {
        let begin = Instant::now();
        let computation = Work::lasting(JOB);
        let priority = generator::urgently(platform::raise_priority);
        let conditions = Conditions::of(&plan, priority);
        let max_connections = max_connections(descriptors);
        let mut session = Self { plan, conditions, capacity: 0.0, computation, max_connections, stop, begin };
        session.capacity = session.measure_capacity()?;
        session.conditions.capacity_per_second = Some(session.capacity);
        eprintln!(
            "latency: {:.0} jobs a second are 100 %; each is {computation}; the generator has {priority}",
            session.capacity
        );
        Ok(session)
    }

    /// Everything that the plan says, of these variants.
    pub(crate) fn measure(mut self, chosen: &[Variant]) -> Result<Vec<Record>, BoxError> {
        let parts: Vec<Vec<Row>> = self.plan.parts.iter().map(|part| rows(part, chosen)).collect();
        let total = parts.iter().flatten().map(|row| row.part.rounds).sum();
        if total == 0 {
            return Err("none of these variants takes part in these scenes; see benches/README.md".into());
        }
        let mut done = 0;
        let mut measured = Vec::new();
        for rows in parts {
            measured.extend(self.measure_rounds(rows, &mut done, total)?);
        }
        self.conditions.capacity_after_per_second = Some(self.measure_capacity()?);
        Ok(measured
            .iter()
            .filter_map(|Row { variant, load, part, runs }| {
                let jobs = part.job_rates(*load, self.capacity);
                Record::of(variant.name, *load, part, &jobs, runs, &self.conditions)
            })
            .collect())
    }

    fn measure_capacity(&self) -> Result<f64, BoxError> {
        let yardstick = variants::named(YARDSTICK).ok_or("the yardstick is no variant")?;
        let server = ServerProcess::start(yardstick, self.computation)?;
        capacity::measure(server.address(), self.plan.capacity, self.stop)
    }

    /// All rows of a part, round by round, so that whatever else the machine does meets all of them alike. Each round begins
    /// with another row.
    fn measure_rounds(&mut self, mut rows: Vec<Row>, done: &mut usize, total: usize) -> Result<Vec<Row>, BoxError> {
        let count = rows.len();
        let rounds = rows.first().map_or(0, |row| row.part.rounds);
        let first_step = (count / rounds.max(1)).max(1);
        for round in 0..rounds {
            for position in 0..count {
                let row = &mut rows[(position + round * first_step) % count];
                *done += 1;
                let run = self.measure_reliably(row)?;
                eprintln!(
                    "[{done:>3}/{total}, {:>3.0} s] {}: /ping p99 {:>8.2} ms, generator late by {:.2} ms, others had {:.0} %",
                    self.begin.elapsed().as_secs_f64(),
                    name(row),
                    run.ping.latency_ms(0.99),
                    run.lateness_ms(),
                    run.others.unwrap_or(f64::NAN),
                );
                row.runs.push(run);
            }
        }
        Ok(rows)
    }

    /// One run, and one more if the generator was too late to judge by it; then the less late of the two.
    fn measure_reliably(&mut self, row: &Row) -> Result<Run, BoxError> {
        let run = self.measure_once(row)?;
        if record::is_reliable(run.lateness_ms()) || self.plan.repeats == 0 {
            return Ok(run);
        }
        self.plan.repeats -= 1;
        eprintln!(
            "latency: {} again: the generator was late by {:.1} ms, {} ms are tolerated",
            name(row).trim_end(),
            run.lateness_ms(),
            TOLERATED_LATENESS.as_millis(),
        );
        let again = self.measure_once(row)?;
        Ok(if again.lateness_ms() <= run.lateness_ms() { again } else { run })
    }

    fn measure_once(&self, row: &Row) -> Result<Run, BoxError> {
        let work = match row.part.scene {
            Scene::Sleeping => Work::Sleep { milliseconds: SLEEPING_JOB.as_millis().try_into()? },
            Scene::Cpu | Scene::Recovery | Scene::Target => self.computation,
        };
        let mut server = ServerProcess::start(&row.variant, work)?;
        let jobs = row.part.job_rates(row.load, self.capacity);
        let streams = [
            Stream { order: Order::get("/ping"), schedule: Schedule::new(Arrivals::Constant, PING_RATE) },
            Stream { order: Order::get("/job"), schedule: Schedule::stepwise(self.plan.jobs, jobs) },
        ];
        let before = Usage::now(server.id());
        let observation = generator::run(server.address(), &streams, row.part.phases, self.max_connections, self.stop)?;
        server.check_alive()?;
        let others = before.and_then(|before| Some(Usage::now(server.id())?.others_percent_since(before)));
        let [ping, work] = observation.tallies.try_into().map_err(|_| "two streams have two tallies")?;
        Ok(Run { ping, work, lateness: observation.lateness, others })
    }
}

/// Some descriptors are for other things than connections.
pub(crate) fn max_connections(descriptors: usize) -> usize {
    descriptors.saturating_sub(100).max(100)
}

fn rows(part: &Part, chosen: &[Variant]) -> Vec<Row> {
    let takes_part = |variant: &&Variant| part.variants.contains(&variant.name);
    let variants: Vec<Variant> = chosen.iter().filter(takes_part).copied().collect();
    let of_load = |load: Option<u32>| {
        variants.clone().into_iter().map(move |variant| Row { variant, load, part: part.clone(), runs: Vec::new() })
    };
    part.loads.iter().copied().flat_map(of_load).collect()
}

fn name(row: &Row) -> String {
    let load = row.load.filter(|_| row.part.scene == Scene::Cpu).map_or_else(String::new, |load| format!("{load} %"));
    format!("{:<8} {load:>5} {:<21}", row.part.scene.to_string(), row.variant.name)
}
