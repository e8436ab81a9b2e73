use tokio::time::Instant;

use super::{
    QueuePolicy,
    lane::{Lane, Waits},
};

/// How many picks of a cycle each lane has while calls wait in all of them.
const LANES: [(Which, i32); 3] = [(Which::High, 16), (Which::Normal, 4), (Which::Low, 1)];
const CYCLE_LENGTH: usize = 21;

/// Whose turn it is, pick by pick: the sequence of nginx's smooth weighted round robin, which spreads each lane's turns
/// evenly.
const CYCLE: [Which; CYCLE_LENGTH] = cycle();

/// New calls by priority.
///
/// A turn of a lane in which nobody waits goes to the next lane in the cycle. A lane in which somebody waits has its
/// turn after at most 20 picks of others, whichever come and go meanwhile. (Nginx's credits, kept from pick to pick,
/// promise that only while the same lanes wait: else it may take 32.)
#[derive(Debug)]
pub(super) struct Lanes<T> {
    normal: Lane<T>,
    /// In a box, for most pools never have any: what is under the pool's lock should share few cache lines.
    others: Box<Others<T>>,
    /// Calls in these.
    others_waiting: usize,
}

#[derive(Debug)]
struct Others<T> {
    high: Lane<T>,
    low: Lane<T>,
    /// The place in the cycle of the last pick from among several lanes.
    turn: usize,
}

/// Where new calls wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    High,
    Low,
    Normal,
}

impl<T: Waits> Lanes<T> {
    pub(super) fn new(policy: QueuePolicy) -> Self {
        let others = Others { high: Lane::new(policy), low: Lane::new(policy), turn: 0 };
        Self { normal: Lane::new(policy), others: Box::new(others), others_waiting: 0 }
    }

    #[inline]
    pub(super) fn push(&mut self, call: T, which: Which) {
        let lane = match which {
            Which::Normal => return self.normal.push(call),
            Which::High => &mut self.others.high,
            Which::Low => &mut self.others.low,
        };
        lane.push(call);
        self.others_waiting += 1;
    }

    /// The call that goes next; see [`Lane::pop`]. `None` only if none is left.
    #[inline]
    pub(super) fn pop(&mut self, now: Option<Instant>, shed: &mut Vec<T>) -> Option<T> {
        if self.others_waiting == 0 {
            return self.normal.pop(now, shed);
        }
        let mut call = None;
        while call.is_none() && !self.is_empty() {
            let Self { normal, others, others_waiting } = self;
            others.turn = (others.turn + 1) % CYCLE_LENGTH;
            call = match CYCLE[others.turn] {
                Which::High => others.high.pop(now, shed),
                Which::Low => others.low.pop(now, shed),
                Which::Normal => normal.pop(now, shed),
            };
            *others_waiting = others.high.len() + others.low.len();
        }
        call
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn shrink(&mut self) {
        self.normal.shrink();
        self.others.high.shrink();
        self.others.low.shrink();
    }

    /// The normal lane, for calls that come all at once.
    pub(super) fn normal(&mut self) -> &mut Lane<T> {
        &mut self.normal
    }

    pub(super) fn len(&self) -> usize {
        self.normal.len() + self.others_waiting
    }

    /// Since when the oldest one waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        [&self.normal, &self.others.high, &self.others.low].into_iter().filter_map(Lane::oldest).min()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.others_waiting = 0;
        self.others.high.drain().chain(self.normal.drain()).chain(self.others.low.drain())
    }
}

const fn cycle() -> [Which; CYCLE_LENGTH] {
    let mut cycle = [Which::High; CYCLE_LENGTH];
    let mut credits = [0; 3];
    let mut pick = 0;
    while pick < CYCLE_LENGTH {
        let (mut best, mut lane) = (0, 0);
        while lane < LANES.len() {
            credits[lane] += LANES[lane].1;
            if credits[lane] > credits[best] {
                best = lane;
            }
            lane += 1;
        }
        credits[best] -= CYCLE_LENGTH as i32;
        cycle[pick] = LANES[best].0;
        pick += 1;
    }
    cycle
}
