use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::pool::{
    flows::Flows,
    key::CallKey,
    permits::{PermitKind, Permits},
    shares::Shares,
};

/// Tasks that wait for a permit of a semaphore, and the permits that keys have. The part of the
/// semaphore that its lock protects.
#[derive(Debug)]
pub(super) struct Waiters {
    pub(super) is_closed: bool,
    /// Waiters for an exempt permit. They have no key.
    exempt: VecDeque<Waiter>,
    /// Waiters for a limited permit without a key.
    queue: VecDeque<Waiter>,
    /// Waiters for a limited permit with a key.
    keyed: Flows<VecDeque<Waiter>>,
    /// `true` if an exempt waiter has the next turn, because a limited one had the last turn.
    is_exempt_next: bool,
    /// Permits in use by calls with a key. `None` if keys have no share. A permit is counted when
    /// it is acquired, and no longer counted before it is released.
    shares: Option<Shares>,
    /// Upper bound of the number of waiters whose receiver was dropped.
    cancelled: usize,
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) kind: PermitKind,
    pub(super) key: Option<CallKey>,
    /// A message is sent once a permit was acquired for the receiver.
    pub(super) sender: oneshot::Sender<()>,
    /// `false` once the waiter is removed because its receiver was dropped.
    pub(super) has_permit: bool,
}

/// Numbers of permits left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) of_capacity: usize,
    pub(super) of_limit: usize,
}

impl Left {
    pub(super) fn of(self, kind: PermitKind) -> usize {
        match kind {
            PermitKind::Limited => self.of_limit.min(self.of_capacity),
            PermitKind::Exempt => self.of_capacity,
        }
    }
}

impl Waiters {
    pub(super) fn new(shares: Option<Shares>) -> Self {
        Self {
            is_closed: false,
            exempt: VecDeque::new(),
            queue: VecDeque::new(),
            keyed: Flows::new(),
            is_exempt_next: false,
            shares,
            cancelled: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.exempt.len() + self.queue.len() + self.keyed.len()
    }

    pub(super) fn push(&mut self, waiter: Waiter) {
        match (waiter.kind, waiter.key) {
            (PermitKind::Exempt, key) => {
                debug_assert!(key.is_none(), "an exempt waiter with a key would delay those behind it");
                self.exempt.push_back(waiter);
            }
            (PermitKind::Limited, None) => self.queue.push_back(waiter),
            (PermitKind::Limited, Some(key)) => {
                self.keyed.push(key, VecDeque::new, |queue| queue.push_back(waiter));
            }
        }
    }

    /// Moves the next waiter that may have one of the permits left to `served`, once `acquire` has
    /// acquired it, and counts the permit. Waiters for exempt permits and those for limited ones
    /// take turns. Waiters whose receiver was dropped are moved too, without a permit, because
    /// dropping their wakers is user code. Returns `false` if no waiter got a permit.
    pub(super) fn serve_next(
        &mut self,
        left: Left,
        acquire: impl Fn(PermitKind) -> bool,
        served: &mut Vec<Waiter>,
    ) -> bool {
        let Self { exempt, queue, keyed, is_exempt_next, shares, cancelled, .. } = self;
        let mut pop = |queue: &mut VecDeque<Waiter>| -> Option<Waiter> {
            loop {
                let waiter = queue.front()?;
                if waiter.sender.is_closed() {
                    served.extend(queue.pop_front());
                    *cancelled = cancelled.saturating_sub(1);
                } else if may_have(shares.as_ref(), waiter.kind, waiter.key, left) && acquire(waiter.kind) {
                    return queue.pop_front();
                } else {
                    return None;
                }
            }
        };
        let turns = match *is_exempt_next {
            true => [PermitKind::Exempt, PermitKind::Limited],
            false => [PermitKind::Limited, PermitKind::Exempt],
        };
        let waiter = turns.into_iter().find_map(|kind| match kind {
            _ if left.of(kind) == 0 => None,
            PermitKind::Exempt => pop(exempt),
            PermitKind::Limited => keyed.pop(queue, &mut pop),
        });
        let Some(waiter) = waiter else { return false };
        *is_exempt_next = waiter.kind == PermitKind::Limited;
        self.count(waiter.kind, waiter.key);
        served.push(Waiter { has_permit: true, ..waiter });
        true
    }

    /// Returns `true` if the key has not used its share.
    pub(super) fn may_have(&self, kind: PermitKind, key: Option<CallKey>, left: Left) -> bool {
        may_have(self.shares.as_ref(), kind, key, left)
    }

    /// Counts a permit of a key.
    pub(super) fn count(&mut self, kind: PermitKind, key: Option<CallKey>) {
        if let (Some(shares), Some(key)) = (&mut self.shares, key) {
            shares.add(key, kind);
        }
    }

    /// Stops counting a permit of a key.
    pub(super) fn uncount(&mut self, kind: PermitKind, key: CallKey) {
        if let Some(shares) = &mut self.shares {
            shares.remove(key, kind);
        }
    }

    /// Returns `true` if the group of a call has none of the limited permits in use. Calls without
    /// a key are one group.
    pub(super) fn has_none(&self, key: Option<CallKey>, in_use: Permits) -> bool {
        self.shares.as_ref().is_some_and(|shares| match key {
            Some(key) => shares.has_none(key.group()),
            None => in_use.limited() == shares.all().limited(),
        })
    }

    /// Records that the receiver of a waiter was dropped. Returns waiters to be dropped without the
    /// lock.
    pub(super) fn on_cancel(&mut self) -> Vec<Waiter> {
        self.cancelled += 1;
        // Scanning the queue at every cancellation would be quadratic.
        let is_due = self.cancelled * 2 > self.len();
        if is_due { self.remove_cancelled() } else { Vec::new() }
    }

    /// Removes the waiters whose receiver was dropped.
    fn remove_cancelled(&mut self) -> Vec<Waiter> {
        self.cancelled = 0;
        let mut removed = Vec::new();
        let mut remove = |queue: &mut VecDeque<Waiter>| {
            let waiting = queue.drain(..).filter_map(|waiter| {
                if waiter.sender.is_closed() {
                    removed.push(waiter);
                    None
                } else {
                    Some(waiter)
                }
            });
            *queue = waiting.collect();
        };
        remove(&mut self.exempt);
        remove(&mut self.queue);
        self.keyed.for_each(remove);
        removed
    }

    /// Removes all waiters. They must be dropped without the lock.
    pub(super) fn take(&mut self) -> Vec<Waiter> {
        let mut waiters: Vec<_> = self.exempt.drain(..).chain(self.queue.drain(..)).collect();
        self.keyed.for_each(|queue| waiters.extend(queue.drain(..)));
        waiters
    }
}

/// Returns `true` if the key has not used its share. A key of limited permits has a share of the
/// limit as well.
fn may_have(shares: Option<&Shares>, kind: PermitKind, key: Option<CallKey>, left: Left) -> bool {
    let (Some(shares), Some(key)) = (shares, key) else { return true };
    shares.has_room(key, left.of_capacity)
        && (kind == PermitKind::Exempt || shares.has_limited_room(key, left.of_limit))
}
