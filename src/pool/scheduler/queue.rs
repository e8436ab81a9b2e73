use std::{collections::VecDeque, mem};

use tokio::time::Instant;

use crate::pool::{flows::Flows, key::CallKey, priority::Priority};

/// Period of the picks that go to new calls first. All other picks go to woken calls first, since
/// these already hold memory and a waiting caller. New calls still get every eighth pick, so that a
/// future which wakes itself forever does not starve them.
const NEW_CALL_PERIOD: u8 = 8;

/// Maximum number of cancelled calls that one pick passes over, so that the call that is picked
/// starts promptly.
pub(super) const MAX_SHED: usize = 64;

/// Capacity that an empty queue keeps, 16 KiB of entries. More than that is freed after a burst.
const MAX_IDLE_CAPACITY: usize = 1024;

const CYCLE_LENGTH: usize = 21;

/// Number of picks that each lane has in one cycle while calls wait in all of them.
const WEIGHTS: [(Priority, i32); 3] = [(Priority::High, 16), (Priority::Normal, 4), (Priority::Low, 1)];

/// Order in which lanes are picked: the sequence of nginx's smooth weighted round robin, which
/// spreads the picks of each lane evenly.
const CYCLE: [Priority; CYCLE_LENGTH] = cycle();

/// An entry of the queue.
pub(in crate::pool) trait QueueItem {
    /// Returns the time at which the call entered the queue.
    fn queued_at(&self) -> Instant;

    /// Returns `true` if the entry will only be dropped. Read only if the call has a key.
    fn is_cancelled(&self) -> bool {
        false
    }

    /// Returns `true` if the call must not be shed to end an overload.
    fn is_exempt(&self) -> bool {
        false
    }
}

/// Properties of an entry that decide where it waits.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::pool) struct Class {
    pub(in crate::pool) priority: Priority,
    pub(in crate::pool) key: Option<CallKey>,
    /// `true` if the call was polled before.
    pub(in crate::pool) is_woken: bool,
}

impl Class {
    #[cfg(test)]
    pub(super) fn of(priority: Priority, is_woken: bool) -> Self {
        Self { priority, key: None, is_woken }
    }

    /// Returns `true` for a new call of normal priority without a key.
    #[inline]
    pub(super) fn is_default(self) -> bool {
        !self.is_woken && self.key.is_none() && self.priority == Priority::Normal
    }
}

/// Entries that wait for a worker, and the order in which they are picked. Pure: no locks, and no
/// time.
///
/// Woken calls have a queue of their own, first in, first out. New calls wait in one lane for each
/// priority, in order of arrival. In both cases, those with a key wait in [`Flows`] beside it: keys
/// take turns, and the calls without one take turns like one more key. A new call that will only be
/// dropped uses no turn.
///
/// A pick of an empty lane goes to the next lane in the cycle. A lane that is not empty is picked
/// after at most 20 picks of others, even if these become empty and fill again. (Nginx
/// keeps credits from pick to pick, which guarantees this only while the same lanes are filled;
/// otherwise a lane may wait for 32 picks.)
#[derive(Debug)]
pub(super) struct Queue<T> {
    woken: VecDeque<T>,
    /// Number of woken calls with a key, which are in `other`.
    woken_keyed: usize,
    normal: VecDeque<T>,
    /// Boxed because most pools never use it, so that the fields that are used under the
    /// scheduler's lock share few cache lines.
    other: Box<OtherLanes<T>>,
    /// Number of new calls in `other`. While it is 0, new calls are in `normal` only.
    other_len: usize,
    /// `true` if `other` may have allocated since it was shrunk.
    is_other_used: bool,
    /// Number of picks so far, modulo [`NEW_CALL_PERIOD`], without those from `normal` alone.
    picks: u8,
}

#[derive(Debug)]
struct OtherLanes<T> {
    high: VecDeque<T>,
    low: VecDeque<T>,
    /// Calls with a key, one element for each priority.
    keyed: [Flows<VecDeque<T>>; WEIGHTS.len()],
    /// Woken calls with a key.
    woken: Flows<VecDeque<T>>,
    /// Position in [`CYCLE`] of the last pick.
    position: usize,
}

impl<T: QueueItem> Queue<T> {
    pub(super) fn new() -> Self {
        let other = OtherLanes {
            high: VecDeque::new(),
            low: VecDeque::new(),
            keyed: std::array::from_fn(|_| Flows::new()),
            woken: Flows::new(),
            position: 0,
        };
        Self {
            woken: VecDeque::new(),
            woken_keyed: 0,
            normal: VecDeque::new(),
            other: Box::new(other),
            other_len: 0,
            is_other_used: false,
            picks: 0,
        }
    }

    #[inline]
    pub(super) fn push(&mut self, item: T, class: Class) {
        let Class { priority, key, is_woken } = class;
        match (key, priority) {
            (None, _) if is_woken => return self.woken.push_back(item),
            (Some(key), _) if is_woken => {
                self.is_other_used = true;
                self.woken_keyed += 1;
                return self.other.woken.push(key, VecDeque::new, |items| items.push_back(item));
            }
            (None, Priority::Normal) => return self.normal.push_back(item),
            (None, Priority::High) => self.other.high.push_back(item),
            (None, Priority::Low) => self.other.low.push_back(item),
            (Some(key), _) => {
                self.other.keyed[priority as usize].push(key, VecDeque::new, |items| items.push_back(item));
            }
        }
        self.is_other_used = true;
        self.other_len += 1;
    }

    /// Removes the next entry. Cancelled calls of keys that it passes over are moved to `shed`.
    /// Returns `None` only if the queue is empty afterwards.
    #[inline]
    pub(super) fn pop(&mut self, shed: &mut Vec<T>) -> Option<T> {
        if self.other_len + self.woken_keyed + self.woken.len() == 0 {
            return self.normal.pop_front();
        }
        self.pop_any(shed)
    }

    #[inline(never)] // Keeps it out of the path of a pool that has only new calls without a key.
    fn pop_any(&mut self, shed: &mut Vec<T>) -> Option<T> {
        self.picks = (self.picks + 1) % NEW_CALL_PERIOD;
        match self.picks {
            0 => self.pop_new(shed).or_else(|| self.pop_woken()),
            _ => self.pop_woken().or_else(|| self.pop_new(shed)),
        }
    }

    #[inline]
    fn pop_woken(&mut self) -> Option<T> {
        if self.woken_keyed == 0 {
            return self.woken.pop_front();
        }
        let item = self.other.woken.pop(&mut self.woken, VecDeque::pop_front);
        self.woken_keyed = self.other.woken.len();
        item
    }

    #[inline]
    fn pop_new(&mut self, shed: &mut Vec<T>) -> Option<T> {
        if self.other_len == 0 {
            return self.normal.pop_front();
        }
        let mut item = None;
        while item.is_none() && self.normal.len() + self.other_len > 0 {
            let Self { normal, other, other_len, .. } = self;
            other.position = (other.position + 1) % CYCLE_LENGTH;
            item = other.pop(CYCLE[other.position], normal, shed);
            *other_len = other.len();
        }
        item
    }

    pub(super) fn len(&self) -> usize {
        self.woken.len() + self.woken_keyed + self.normal.len() + self.other_len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn has_normal(&self) -> bool {
        !self.normal.is_empty()
    }

    /// Appends all of `items` as new calls of normal priority.
    pub(super) fn append_normal(&mut self, items: &mut VecDeque<T>) {
        if self.normal.is_empty() {
            mem::swap(&mut self.normal, items);
        } else {
            self.normal.append(items);
        }
    }

    /// Removes new calls until at most `len` are left that are not exempt: the oldest of the lowest
    /// priority first, and in a priority those of the keys with the most calls.
    pub(super) fn shed_to(&mut self, len: usize) -> Vec<T> {
        let priorities = [Priority::Low, Priority::Normal, Priority::High];
        let waiting = priorities.map(|priority| {
            let (lane, flows) = self.other.of(priority, &mut self.normal);
            sheddable(lane) + flows.sum(sheddable)
        });
        let mut excess = waiting.iter().sum::<usize>().saturating_sub(len);
        let mut shed = Vec::with_capacity(excess);
        for (priority, waiting) in priorities.into_iter().zip(waiting) {
            let before = shed.len();
            let (lane, flows) = self.other.of(priority, &mut self.normal);
            let keep = waiting.saturating_sub(excess);
            flows.cut(lane, keep, sheddable, |lane, keep| shed_lane_to(lane, keep, &mut shed));
            excess -= shed.len() - before;
        }
        self.other_len = self.other.len();
        shed
    }

    /// Returns the time since which the oldest new call waits. Of the calls with a key, only those
    /// of the key that has the next turn are considered.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let lanes = [&self.normal, &self.other.high, &self.other.low];
        let keyed = self.other.keyed.iter().filter_map(Flows::front);
        lanes.into_iter().chain(keyed).filter_map(|lane| lane.front().map(QueueItem::queued_at)).min()
    }

    /// Frees memory that was allocated for a burst. Called when the queue is empty.
    pub(super) fn shrink(&mut self) {
        shrink(&mut self.woken);
        shrink(&mut self.normal);
        if mem::take(&mut self.is_other_used) {
            self.shrink_other();
        }
    }

    #[cold]
    fn shrink_other(&mut self) {
        let other = &mut *self.other;
        shrink(&mut other.high);
        shrink(&mut other.low);
        other.keyed.iter_mut().for_each(Flows::shrink);
        other.woken.shrink();
    }

    /// Removes all entries.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        (self.other_len, self.woken_keyed) = (0, 0);
        let OtherLanes { high, low, keyed, woken, .. } = &mut *self.other;
        let mut of_keys = Vec::new();
        woken.for_each(|items| of_keys.extend(items.drain(..)));
        keyed.iter_mut().for_each(|flows| flows.for_each(|lane| of_keys.extend(lane.drain(..))));
        let lanes = [high, &mut self.normal, low];
        self.woken.drain(..).chain(lanes.into_iter().flat_map(|items| items.drain(..))).chain(of_keys)
    }
}

impl<T: QueueItem> OtherLanes<T> {
    fn len(&self) -> usize {
        self.high.len() + self.low.len() + self.keyed.iter().map(Flows::len).sum::<usize>()
    }

    /// Returns the places of the calls of one priority: without a key, and with one.
    fn of<'a>(
        &'a mut self,
        priority: Priority,
        normal: &'a mut VecDeque<T>,
    ) -> (&'a mut VecDeque<T>, &'a mut Flows<VecDeque<T>>) {
        let lane = match priority {
            Priority::High => &mut self.high,
            Priority::Normal => normal,
            Priority::Low => &mut self.low,
        };
        (lane, &mut self.keyed[priority as usize])
    }

    fn pop(&mut self, priority: Priority, normal: &mut VecDeque<T>, shed: &mut Vec<T>) -> Option<T> {
        let (lane, flows) = self.of(priority, normal);
        if flows.len() == 0 {
            return lane.pop_front();
        }
        flows.pop(lane, |lane| pop_wanted(lane, shed))
    }
}

/// Removes the next call that is not cancelled. Cancelled ones are moved to `shed`, unless there is
/// no other call.
fn pop_wanted<T: QueueItem>(lane: &mut VecDeque<T>, shed: &mut Vec<T>) -> Option<T> {
    let mut item = lane.pop_front()?;
    while item.is_cancelled() && shed.len() < MAX_SHED {
        let Some(next) = lane.pop_front() else { break };
        shed.push(mem::replace(&mut item, next));
    }
    Some(item)
}

/// Returns the number of calls that are not exempt.
fn sheddable<T: QueueItem>(lane: &VecDeque<T>) -> usize {
    lane.iter().filter(|item| !item.is_exempt()).count()
}

/// Moves the oldest calls of a lane to `shed` until at most `keep` are left that are not exempt.
fn shed_lane_to<T: QueueItem>(lane: &mut VecDeque<T>, keep: usize, shed: &mut Vec<T>) {
    let mut excess = sheddable(lane).saturating_sub(keep);
    let items = mem::take(lane).into_iter().filter_map(|item| {
        if excess == 0 || item.is_exempt() {
            return Some(item);
        }
        excess -= 1;
        shed.push(item);
        None
    });
    *lane = items.collect();
}

/// Frees the memory that an empty queue allocated for a burst.
pub(super) fn shrink<T>(items: &mut VecDeque<T>) {
    if items.capacity() > MAX_IDLE_CAPACITY && items.is_empty() {
        *items = VecDeque::new();
    }
}

const fn cycle() -> [Priority; CYCLE_LENGTH] {
    let mut cycle = [Priority::High; CYCLE_LENGTH];
    let mut credits = [0; WEIGHTS.len()];
    let mut pick = 0;
    while pick < CYCLE_LENGTH {
        let (mut best, mut lane) = (0, 0);
        while lane < WEIGHTS.len() {
            credits[lane] += WEIGHTS[lane].1;
            if credits[lane] > credits[best] {
                best = lane;
            }
            lane += 1;
        }
        credits[best] -= CYCLE_LENGTH as i32;
        cycle[pick] = WEIGHTS[best].0;
        pick += 1;
    }
    cycle
}
