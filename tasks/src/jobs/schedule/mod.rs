//! Schedules of jobs: when they tick, and which ticks are due. It is pure; [`run`] enqueues the
//! jobs.

pub(super) mod run;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Duration};

use riverqueue::{
    CronSchedule,
    jiff::{SignedDuration, Timestamp, tz::TimeZone},
};

/// When jobs are enqueued by [`JobsBuilder::every`](super::JobsBuilder::every).
///
/// A [`Duration`] converts to a schedule.
///
/// ```
/// use tower_offload_tasks::jobs::{CatchUp, Schedule};
///
/// // At 3 o'clock in Berlin. After an outage the latest missed tick is made up.
/// let nightly = Schedule::cron("0 3 * * *").time_zone("Europe/Berlin");
/// // Each quarter of an hour. Up to 8 missed ticks are made up.
/// let quarterly = Schedule::cron("*/15 * * * *").catch_up(CatchUp::All(8));
/// ```
#[derive(Debug, Clone)]
#[must_use = "a schedule does nothing until it is passed to `JobsBuilder::every`"]
pub struct Schedule {
    ticks: Result<Ticks, String>,
    catch_up: CatchUp,
}

/// Which ticks are made up that no process has enqueued in time, because none was running or the
/// database was unavailable.
///
/// In each case a tick is enqueued at most once, and ticks in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CatchUp {
    /// None: a tick that is more than a minute late is skipped. Of several ticks within that minute
    /// only the latest is enqueued.
    Skip,
    /// The latest one, however late. This is the default.
    #[default]
    Once,
    /// All, but at most this number of them, 1 to 1000: the latest.
    All(u16),
}

#[derive(Debug, Clone)]
enum Ticks {
    /// At multiples of an interval since 1970.
    Every(SignedDuration),
    Cron {
        schedule: CronSchedule,
        /// `true` if the time of day is not fixed. Such a schedule goes by elapsed time when a
        /// clock is set forward or back.
        is_wild: bool,
        zone: TimeZone,
    },
}

/// Ticks that are due.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    /// The ticks to enqueue.
    ticks: Vec<Timestamp>,
    /// The latest tick. It and all earlier ones are done with.
    last: Timestamp,
}

const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(366 * 24 * 3600);
/// Maximum length of a cron expression.
const MAX_EXPRESSION_BYTES: usize = 200;
/// Maximum number of digits of a number in a cron expression. River's parser adds larger numbers
/// without a check for overflow.
const MAX_DIGITS: usize = 3;
/// Maximum number of ticks that are made up. They are inserted in one transaction.
const MAX_CATCH_UP: u16 = 1000;
/// Maximum lateness of a tick that is not missed.
const MAX_LATENESS: SignedDuration = SignedDuration::from_mins(1);

impl Schedule {
    /// Ticks at multiples of `interval` since 1970, so that all processes agree: an hour is each
    /// full hour of UTC. The interval is 1 second to 366 days in whole milliseconds.
    pub fn interval(interval: Duration) -> Self {
        let is_valid = (MIN_INTERVAL..=MAX_INTERVAL).contains(&interval);
        let millis = i64::try_from(interval.as_millis()).unwrap_or_default();
        let ticks = is_valid.then(|| Ticks::Every(SignedDuration::from_millis(millis))).ok_or_else(|| {
            format!("the interval must be between {MIN_INTERVAL:?} and {MAX_INTERVAL:?}, got {interval:?}")
        });
        Self { ticks, catch_up: CatchUp::default() }
    }

    /// Ticks at the times of a cron expression with five fields: minute, hour, day of month, month,
    /// and day of week from 0 (Sunday) to 6. Each is a list of numbers, names (`jan`, `mon`),
    /// ranges (`1-5`) and steps (`*/15`), or `*`. If both days are restricted, one of them must
    /// match. Also `@yearly`, `@monthly`, `@weekly`, `@daily` and `@hourly`. It is the syntax of
    /// River's clients in all languages.
    ///
    /// If clocks are set forward, a time of day that is skipped ticks later by the difference, and
    /// if they are set back, one that occurs twice ticks at the first. A schedule with `*` or `*/n`
    /// as minute or hour is not adjusted: `*/15 * * * *` ticks each quarter of an hour of elapsed
    /// time.
    pub fn cron(expression: &str) -> Self {
        Self { ticks: parse(expression), catch_up: CatchUp::default() }
    }

    /// Sets the time zone of a cron expression, such as `Europe/Berlin`. Default: UTC.
    ///
    /// Names are those of the IANA database, which must be installed: the Debian package is
    /// `tzdata`.
    pub fn time_zone(self, name: &str) -> Self {
        let ticks = self.ticks.and_then(|ticks| match ticks {
            Ticks::Every(_) => Err("an interval has no time zone: use a cron expression".to_owned()),
            Ticks::Cron { schedule, is_wild, .. } => match TimeZone::get(name) {
                Ok(zone) => Ok(Ticks::Cron { schedule, is_wild, zone }),
                Err(error) => Err(format!(
                    "unknown time zone {name:?}: use a name of the IANA database, and check that it is installed ({error})"
                )),
            },
        });
        Self { ticks, ..self }
    }

    /// Sets which missed ticks are made up. Default: [`CatchUp::Once`].
    pub fn catch_up(self, catch_up: CatchUp) -> Self {
        Self { catch_up, ..self }
    }

    /// Returns an error if an option is not valid, or if there is no tick after `now`.
    fn validate(&self, now: Timestamp) -> Result<(), String> {
        self.ticks.as_ref().map_err(String::clone)?;
        if let CatchUp::All(max) = self.catch_up
            && !(1..=MAX_CATCH_UP).contains(&max)
        {
            return Err(format!("the number of ticks to make up must be between 1 and {MAX_CATCH_UP}, got {max}"));
        }
        let never = || "the cron expression matches no time of the next five years".to_owned();
        self.next(now).map(drop).ok_or_else(never)
    }

    /// Returns the first tick after a time.
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self.ticks.as_ref().ok()? {
            Ticks::Every(interval) => {
                let interval = i64::try_from(interval.as_millis()).ok()?;
                let next = after.as_millisecond().div_euclid(interval).checked_add(1)?.checked_mul(interval)?;
                Timestamp::from_millisecond(next).ok()
            }
            Ticks::Cron { schedule, is_wild: true, zone } => {
                Some(schedule.next_after(&after.to_zoned(zone.clone()))?.timestamp())
            }
            Ticks::Cron { schedule, zone, .. } => next_by_clock(schedule, zone, after),
        }
    }

    /// Returns the latest ticks after `last` and not after `now`, at most `max`.
    ///
    /// There is no way to search backwards. Therefore it searches in the last hour, and then in
    /// longer periods until one has enough ticks.
    fn latest(&self, last: Timestamp, now: Timestamp, max: usize) -> Vec<Timestamp> {
        let mut period = SignedDuration::from_hours(1);
        loop {
            let from = now.checked_sub(period).unwrap_or(Timestamp::MIN).max(last);
            let mut ticks = VecDeque::new();
            let mut next = self.next(from);
            while let Some(tick) = next.filter(|tick| *tick <= now) {
                if ticks.len() == max {
                    ticks.pop_front();
                }
                ticks.push_back(tick);
                next = self.next(tick);
            }
            if ticks.len() == max || from <= last {
                return ticks.into();
            }
            period *= 4;
        }
    }

    /// Returns the ticks that are due at `now` if those until `last` are done with, or `None` if
    /// there is no tick in between. A clock that was set back makes none due.
    fn due(&self, last: Timestamp, now: Timestamp) -> Option<Due> {
        let max = match self.catch_up {
            CatchUp::Skip | CatchUp::Once => 1,
            CatchUp::All(max) => max.into(),
        };
        let mut ticks = self.latest(last, now, max);
        let last = *ticks.last()?;
        if self.catch_up == CatchUp::Skip {
            ticks.retain(|tick| now.duration_since(*tick) <= MAX_LATENESS);
        }
        Some(Due { ticks, last })
    }
}

impl From<Duration> for Schedule {
    /// The same as [`Schedule::interval`].
    fn from(interval: Duration) -> Self {
        Self::interval(interval)
    }
}

fn parse(expression: &str) -> Result<Ticks, String> {
    let has_large_number = expression.split(|at: char| !at.is_ascii_digit()).any(|number| number.len() > MAX_DIGITS);
    if expression.len() > MAX_EXPRESSION_BYTES || has_large_number {
        return Err(format!(
            "a cron expression has at most {MAX_EXPRESSION_BYTES} bytes and numbers of {MAX_DIGITS} digits"
        ));
    }
    if expression.contains('=') || expression.starts_with("@every") {
        return Err(format!(
            "cron expression {expression:?}: use `Schedule::time_zone` for a time zone and `Schedule::interval` for an interval"
        ));
    }
    let schedule = CronSchedule::parse(expression).map_err(|error| error.to_string())?;
    let time = expression.split_whitespace().take(2);
    let is_wild = expression == "@hourly" || time.into_iter().any(|field| field.starts_with(['*', '?']));
    Ok(Ticks::Cron { schedule, is_wild, zone: TimeZone::UTC })
}

/// Returns the first tick after a time of a schedule whose time of day is fixed.
///
/// The expression is evaluated for the dates and times that a calendar and a clock on the wall
/// show. Each of them is then converted: one that is skipped is later by the difference, and of one
/// that occurs twice it is the first.
fn next_by_clock(schedule: &CronSchedule, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    /// Clocks are set by at most this.
    const MAX_SHIFT: SignedDuration = SignedDuration::from_hours(25);
    // A clock that was not set forward lately. It has not shown the times yet that were skipped.
    let before = zone.to_offset(after.checked_sub(MAX_SHIFT).ok()?).min(zone.to_offset(after));
    let mut clock = before.to_datetime(after);
    let mut first: Option<Timestamp> = None;
    loop {
        let next = schedule.next_after(&clock.to_zoned(TimeZone::UTC).ok()?);
        clock = match next {
            Some(next) => next.datetime(),
            None => return first,
        };
        // Times after this one tick later, except after one that was skipped.
        if first.is_some_and(|first| clock > zone.to_datetime(first)) {
            return first;
        }
        let tick = zone.to_ambiguous_zoned(clock).compatible().ok()?.timestamp();
        if tick > after {
            first = Some(first.map_or(tick, |first| first.min(tick)));
        }
    }
}
