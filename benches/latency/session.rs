//! One session: the conditions it found, and all its runs in their order.

use std::time::Instant;

use crate::{
    BoxError,
    arrivals::{Arrivals, Schedule},
    bystanders::Usage,
    capacity,
    generator::{self, Stream},
    plan::{JOB, LOADS, PING_RATE, Plan, TOLERATED_LATENESS},
    platform::{self, Priority},
    process::ServerProcess,
    rows::{Row, Run},
    server,
    stop::Stop,
    variants::{self, Variant},
    work::Work,
};

/// The pool whose capacity the loads are percentages of. Every variant then gets the same number of jobs a second.
const YARDSTICK: &str = "offload/threads";

/// What all figures of a session depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    pub(crate) plan: Plan,
    pub(crate) cores: usize,
    pub(crate) priority: Priority,
    /// Jobs a second, before the first round.
    pub(crate) capacity: f64,
}

pub(crate) struct Session<'a> {
    conditions: Conditions,
    work: Work,
    max_connections: usize,
    stop: &'a Stop,
    begin: Instant,
}

impl<'a> Session<'a> {
    /// Calibrates the job and measures the capacity.
    pub(crate) fn start(plan: Plan, descriptors: usize, stop: &'a Stop) -> Result<Self, BoxError> {
        let begin = Instant::now();
        let work = Work::lasting(JOB);
        let priority = generator::urgently(platform::raise_priority);
        let conditions = Conditions { plan, cores: server::cores(), priority, capacity: 0.0 };
        // Some descriptors are for other things than connections.
        let max_connections = descriptors.saturating_sub(100).max(100);
        let mut session = Self { conditions, work, max_connections, stop, begin };
        session.conditions.capacity = session.measure_capacity()?;
        eprintln!(
            "latency: {:.0} jobs a second are 100 %; {} iterations a job; the generator has {priority}",
            session.conditions.capacity,
            work.iterations(),
        );
        Ok(session)
    }

    pub(crate) fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    pub(crate) fn measure_capacity(&self) -> Result<f64, BoxError> {
        let yardstick = variants::named(YARDSTICK).ok_or("the yardstick is no variant")?;
        let server = ServerProcess::start(yardstick, self.work)?;
        capacity::measure(server.address(), self.conditions.plan.capacity, self.stop)
    }

    /// All variants at all loads, round by round, so that whatever else the machine does meets all of them alike. Each
    /// round begins with another variant.
    pub(crate) fn measure_all(&self, variants: &[Variant]) -> Result<Vec<Row>, BoxError> {
        let plan = self.conditions.plan;
        let mut rows: Vec<Row> = LOADS
            .iter()
            .flat_map(|load| variants.iter().map(|variant| Row { variant: *variant, load: *load, runs: Vec::new() }))
            .collect();
        let (total, first_step) = (plan.rounds * rows.len(), (rows.len() / plan.rounds).max(1));
        let (mut done, mut repeats) = (0, plan.repeats);
        for round in 0..plan.rounds {
            let count = rows.len();
            for position in 0..count {
                let row = &mut rows[(position + round * first_step) % count];
                done += 1;
                let run = self.measure(row, &mut repeats)?;
                eprintln!(
                    "[{done:>2}/{total}, {:>3.0} s] {:<21} at {:>3} %: /ping p99 {:>8.2} ms, generator late by {:.2} ms, others had {:.0} %",
                    self.begin.elapsed().as_secs_f64(),
                    row.variant.name,
                    row.load,
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
    fn measure(&self, row: &Row, repeats: &mut usize) -> Result<Run, BoxError> {
        let run = self.measure_once(row)?;
        if run.is_reliable() || *repeats == 0 {
            return Ok(run);
        }
        *repeats -= 1;
        eprintln!(
            "latency: {} at {} % again: the generator was late by {:.1} ms, {} ms are tolerated",
            row.variant.name,
            row.load,
            run.lateness_ms(),
            TOLERATED_LATENESS.as_millis(),
        );
        let again = self.measure_once(row)?;
        Ok(if again.lateness_ms() <= run.lateness_ms() { again } else { run })
    }

    fn measure_once(&self, row: &Row) -> Result<Run, BoxError> {
        let mut server = ServerProcess::start(&row.variant, self.work)?;
        let jobs = self.conditions.capacity * f64::from(row.load) / 100.0;
        let streams = [
            Stream { path: "/ping", schedule: Schedule::new(Arrivals::Constant, PING_RATE) },
            Stream { path: "/job", schedule: Schedule::new(self.conditions.plan.jobs, jobs) },
        ];
        let phases = self.conditions.plan.phases;
        let before = Usage::now(server.id());
        let observation = generator::run(server.address(), &streams, phases, self.max_connections, self.stop)?;
        server.check_alive()?;
        let others = before.and_then(|before| Some(Usage::now(server.id())?.others_percent_since(before)));
        let [ping, work] = observation.tallies.try_into().map_err(|_| "two streams have two tallies")?;
        Ok(Run { ping, work, lateness: observation.lateness, others })
    }
}
