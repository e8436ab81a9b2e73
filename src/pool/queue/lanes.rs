use tokio::time::Instant;

use super::{
    QueuePolicy,
    lane::{Lane, Waits},
};

/// The lanes, and how many picks of a cycle each has while all of them wait.
const HIGH: usize = 0;
const NORMAL: usize = 1;
const LOW: usize = 2;
const WEIGHTS: [i32; 3] = [16, 4, 1];
const CYCLE_LENGTH: usize = 21;

/// Whose turn it is, pick by pick: the sequence of nginx's smooth weighted round robin, which spreads each lane's turns
/// evenly.
const CYCLE: [usize; CYCLE_LENGTH] = cycle();

/// New calls by priority.
///
/// A turn of a lane in which nobody waits goes to the next lane in the cycle. A lane in which somebody waits has its turn
/// after at most 20 picks of others, whichever come and go meanwhile. (Nginx's credits, kept from pick to pick, promise that only
/// while the same lanes wait: else it may take 32.)
#[derive(Debug)]
pub(super) struct Lanes<T> {
    lanes: [Lane<T>; 3],
    /// Calls in all lanes.
    waiting: usize,
    /// The place in the cycle of the last pick.
    turn: usize,
}

/// Where new calls wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    High = HIGH as isize,
    Low = LOW as isize,
    Normal = NORMAL as isize,
}

impl<T: Waits> Lanes<T> {
    pub(super) fn new(policy: QueuePolicy) -> Self {
        Self { lanes: std::array::from_fn(|_| Lane::new(policy)), waiting: 0, turn: 0 }
    }

    pub(super) fn push(&mut self, call: T, which: Which) {
        self.lanes[which as usize].push(call);
        self.waiting += 1;
    }

    /// The call that goes next; see [`Lane::pop`]. `None` only if none is left.
    pub(super) fn pop(&mut self, now: Option<Instant>, shed: &mut Vec<T>) -> Option<T> {
        if self.lanes[NORMAL].len() == self.waiting {
            let call = self.lanes[NORMAL].pop(now, shed);
            self.waiting = self.lanes[NORMAL].len();
            return call;
        }
        while self.waiting > 0 {
            self.turn = (self.turn + 1) % CYCLE_LENGTH;
            let lane = &mut self.lanes[CYCLE[self.turn]];
            let before = lane.len();
            let call = lane.pop(now, shed);
            self.waiting -= before - lane.len();
            if call.is_some() {
                return call;
            }
        }
        None
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Since when the oldest one waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::oldest).min()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.waiting = 0;
        self.lanes.iter_mut().flat_map(Lane::drain)
    }
}

const fn cycle() -> [usize; CYCLE_LENGTH] {
    let mut cycle = [HIGH; CYCLE_LENGTH];
    let mut credits = [0; 3];
    let mut pick = 0;
    while pick < CYCLE_LENGTH {
        let mut best = HIGH;
        let mut lane = HIGH;
        while lane <= LOW {
            credits[lane] += WEIGHTS[lane];
            if credits[lane] > credits[best] {
                best = lane;
            }
            lane += 1;
        }
        credits[best] -= CYCLE_LENGTH as i32;
        cycle[pick] = best;
        pick += 1;
    }
    cycle
}
