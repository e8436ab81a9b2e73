//! What is kept of a row: a line of JSON, of which everything that is shown can be made.

use serde::{Deserialize, Serialize};

use crate::latency::{
    arrivals::Step,
    conditions::Conditions,
    plan::{Overload, Part, Scene, TOLERATED_LATENESS, TOLERATED_OTHERS},
    recovery::{self, Recovery, Times},
    rows::Run,
    spread::Spread,
    tally::End,
    timeline::{self, Slice},
};

/// One variant in one scene, at one load: medians of the rounds, and of what casts doubt on them the worst.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) bench: String,
    pub(crate) scene: Scene,
    pub(crate) variant: String,
    /// In percent of the capacity; in a recovery before and after the overload. None where no capacity says what 100 % is.
    pub(crate) load_pct: Option<u32>,
    pub(crate) jobs_per_second: f64,
    pub(crate) measure_seconds: f64,
    pub(crate) ping_p50_ms: f64,
    pub(crate) ping_p99_ms: f64,
    pub(crate) ping_p99_min_ms: f64,
    pub(crate) ping_p99_max_ms: f64,
    pub(crate) ping_unanswered: u64,
    pub(crate) work_ok: u64,
    pub(crate) work_offered: u64,
    pub(crate) work_refused: u64,
    pub(crate) work_expired: u64,
    pub(crate) work_failed: u64,
    pub(crate) within_deadline_pct: f64,
    pub(crate) within_deadline_of_capacity_pct: Option<f64>,
    pub(crate) work_ok_p99_ms: Option<f64>,
    /// None if it is no recovery, or if in half of the rounds that are known it did not come.
    pub(crate) recovery_ms: Option<f64>,
    pub(crate) generator_late_p99_ms: f64,
    pub(crate) rounds: usize,
    pub(crate) others_cpu_max_pct: Option<f64>,
    pub(crate) reliable: bool,
    pub(crate) overload: Option<OverloadTimes>,
    /// Round by round, for ratios and ranges.
    pub(crate) runs: Vec<RunRecord>,
    /// The latencies of `/ping` at the percentiles of [`PLACES`], in milliseconds.
    pub(crate) ping_percentiles_ms: Vec<f64>,
    /// Of a recovery: all of it, a tenth of a second each.
    pub(crate) timeline: Vec<Slice>,
    #[serde(flatten)]
    pub(crate) conditions: Conditions,
}

/// One round of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) ping_p50_ms: f64,
    pub(crate) ping_p99_ms: f64,
    pub(crate) ping_unanswered: u64,
    pub(crate) work_ok: u64,
    pub(crate) work_offered: u64,
    pub(crate) work_refused: u64,
    pub(crate) work_expired: u64,
    pub(crate) work_failed: u64,
    pub(crate) within_deadline_pct: f64,
    pub(crate) within_deadline_of_capacity_pct: Option<f64>,
    pub(crate) work_ok_p99_ms: Option<f64>,
    /// None if it is no recovery, or nobody can say, or it did not come.
    pub(crate) recovery_ms: Option<f64>,
    /// Whether it is known whether and when it came.
    pub(crate) recovery_known: bool,
    pub(crate) generator_late_p99_ms: f64,
    pub(crate) others_cpu_pct: Option<f64>,
}

/// In seconds from the start of the timeline.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct OverloadTimes {
    pub(crate) begin_s: f64,
    pub(crate) end_s: f64,
}

/// The percentiles that are kept, in thousandths of a nine: ten times as rare is 1000 further.
pub(crate) const PLACES: std::ops::RangeInclusive<i32> = 0..=LAST_PLACE;
pub(crate) const LAST_PLACE: i32 = 3000;
pub(crate) const PLACES_STEP: usize = 50;

impl Record {
    /// Jobs without any answer when the run ended.
    pub(crate) fn work_open(&self) -> u64 {
        self.work_offered
            - (self.work_ok + self.work_refused + self.work_expired + self.work_failed).min(self.work_offered)
    }

    /// `part` is what all runs were measured by, and `jobs` when how many jobs were due.
    pub(crate) fn of(
        variant: &str,
        load: Option<u32>,
        part: &Part,
        jobs: &[Step],
        runs: &[Run],
        conditions: &Conditions,
    ) -> Option<Self> {
        let phases = part.phases;
        let capacity = conditions.capacity_per_second;
        let records: Vec<RunRecord> = runs.iter().map(|run| RunRecord::of(run, part, capacity)).collect();
        let median = |figure: fn(&RunRecord) -> f64| Spread::of(records.iter().map(figure)).map(|it| it.median);
        let count = |figure: fn(&RunRecord) -> u64| {
            Spread::of(records.iter().map(|run| figure(run) as f64)).map(|it| it.median.round() as u64)
        };
        let of_some =
            |figure: fn(&RunRecord) -> Option<f64>| Spread::of(records.iter().filter_map(figure)).map(|it| it.median);
        let percentile = |place: i32| {
            let quantile = 1.0 - 10_f64.powf(-f64::from(place) / 1e3);
            Spread::of(runs.iter().map(|run| run.ping.latency_ms(quantile))).map(|it| it.median)
        };
        let p99 = Spread::of(records.iter().map(|run| run.ping_p99_ms))?;
        let late = Spread::of(records.iter().map(|run| run.generator_late_p99_ms))?.max;
        let others = records.iter().filter_map(|run| run.others_cpu_pct).reduce(f64::max);
        let slices = |run: &Run| timeline::slices(&run.ping, &run.work, phases.warm_up, phases.measure);
        Some(Self {
            bench: "latency".to_owned(),
            scene: part.scene,
            variant: variant.to_owned(),
            load_pct: load,
            jobs_per_second: jobs.first()?.per_second,
            measure_seconds: phases.measure.as_secs_f64(),
            ping_p50_ms: median(|run| run.ping_p50_ms)?,
            ping_p99_ms: p99.median,
            ping_p99_min_ms: p99.min,
            ping_p99_max_ms: p99.max,
            ping_unanswered: count(|run| run.ping_unanswered)?,
            work_ok: count(|run| run.work_ok)?,
            work_offered: count(|run| run.work_offered)?,
            work_refused: count(|run| run.work_refused)?,
            work_expired: count(|run| run.work_expired)?,
            work_failed: count(|run| run.work_failed)?,
            within_deadline_pct: median(|run| run.within_deadline_pct)?,
            within_deadline_of_capacity_pct: of_some(|run| run.within_deadline_of_capacity_pct),
            work_ok_p99_ms: of_some(|run| run.work_ok_p99_ms),
            recovery_ms: of_some(RunRecord::recovery_or_never).filter(|milliseconds| milliseconds.is_finite()),
            generator_late_p99_ms: late,
            rounds: runs.len(),
            others_cpu_max_pct: others,
            reliable: is_reliable(late) && is_undisturbed(others),
            overload: part.overload.map(|Overload { after, length }| OverloadTimes {
                begin_s: after.as_secs_f64(),
                end_s: (after + length).as_secs_f64(),
            }),
            ping_percentiles_ms: PLACES.step_by(PLACES_STEP).map_while(percentile).collect(),
            timeline: match part.overload {
                Some(_) => timeline::median(&runs.iter().map(slices).collect::<Vec<_>>()),
                None => Vec::new(),
            },
            runs: records,
            conditions: conditions.clone(),
        })
    }

    pub(crate) fn over_runs(&self, figure: impl Fn(&RunRecord) -> f64) -> Option<Spread> {
        Spread::of(self.runs.iter().map(figure))
    }

    /// Of the rounds that have it.
    pub(crate) fn over_some(&self, figure: impl Fn(&RunRecord) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(figure))
    }

    pub(crate) fn is_reliable(&self) -> bool {
        is_reliable(self.generator_late_p99_ms)
    }

    pub(crate) fn is_undisturbed(&self) -> bool {
        is_undisturbed(self.others_cpu_max_pct)
    }

    /// How long it was watched after the overload.
    pub(crate) fn watched_seconds(&self) -> Option<f64> {
        Some(self.measure_seconds - self.overload?.end_s)
    }
}

impl RunRecord {
    fn of(run: &Run, part: &Part, capacity: Option<f64>) -> Self {
        let work = &run.work;
        let within = work.within_deadline() as f64;
        let recovery = part.overload.map(|Overload { after, length }| {
            let begin = part.phases.warm_up + after;
            recovery::time_until_normal(&work.fates, Times { begin, end: begin + length })
        });
        let could_be_done = |capacity: f64| capacity * part.phases.measure.as_secs_f64();
        Self {
            ping_p50_ms: run.ping.latency_ms(0.5),
            ping_p99_ms: run.ping.latency_ms(0.99),
            ping_unanswered: run.ping.offered() - run.ping.count(End::Answered),
            work_ok: work.count(End::Answered),
            work_offered: work.offered(),
            work_refused: work.count(End::Refused),
            work_expired: work.count(End::Expired),
            work_failed: work.count(End::Failed),
            within_deadline_pct: 100.0 * within / work.offered().max(1) as f64,
            // Jobs that sleep have no share of the cores.
            within_deadline_of_capacity_pct: capacity
                .filter(|_| part.scene == Scene::Cpu)
                .map(|capacity| 100.0 * within / could_be_done(capacity)),
            work_ok_p99_ms: work.answered_ms(0.99),
            recovery_ms: match recovery {
                Some(Recovery::After(time)) => Some(time.as_secs_f64() * 1e3),
                Some(Recovery::Never | Recovery::Unknown) | None => None,
            },
            recovery_known: matches!(recovery, Some(Recovery::After(_) | Recovery::Never)),
            generator_late_p99_ms: run.lateness_ms(),
            others_cpu_pct: run.others,
        }
    }

    /// Infinity if it did not come, None if that is not known.
    pub(crate) fn recovery_or_never(&self) -> Option<f64> {
        self.recovery_known.then(|| self.recovery_ms.unwrap_or(f64::INFINITY))
    }
}

/// Whether the generator was punctual enough to judge the server by.
pub(crate) fn is_reliable(late_ms: f64) -> bool {
    late_ms <= TOLERATED_LATENESS.as_secs_f64() * 1e3
}

fn is_undisturbed(others: Option<f64>) -> bool {
    others.is_none_or(|others| others <= TOLERATED_OTHERS)
}
