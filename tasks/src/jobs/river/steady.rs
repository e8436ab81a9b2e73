use std::time::Duration;

use tokio::time::Instant;

/// Whether this process has been in touch with the database long enough to say of others that they are not.
///
/// After an outage that was longer than a lease every lease is over, and nobody has died: who comes back first must not take the jobs of all
/// others. So the leases of others count only for a process whose own was renewed without a gap for as long as a lease lasts: whoever lives has
/// renewed by then.
#[derive(Debug)]
pub(in crate::jobs) struct Steady {
    lease: Duration,
    since: Option<Instant>,
    last: Option<Instant>,
}

impl Steady {
    pub(in crate::jobs) fn new(lease: Duration) -> Self {
        Self { lease, since: None, last: None }
    }

    /// The own lease was renewed.
    pub(in crate::jobs) fn renewed(&mut self, now: Instant) {
        let is_gap = self.last.is_none_or(|last| now.duration_since(last) >= self.lease);
        if is_gap {
            self.since = Some(now);
        }
        self.last = Some(now);
    }

    /// It could not be.
    pub(in crate::jobs) fn failed(&mut self) {
        (self.since, self.last) = (None, None);
    }

    pub(in crate::jobs) fn is_steady(&self, now: Instant) -> bool {
        let is_fresh = self.last.is_some_and(|last| now.duration_since(last) < self.lease);
        is_fresh && self.since.is_some_and(|since| now.duration_since(since) >= self.lease)
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Steady;

    #[test]
    fn others_are_judged_only_after_a_lease_without_a_gap() {
        let (lease, begin) = (Duration::from_secs(3), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut steady = Steady::new(lease);
        assert!(!steady.is_steady(at(100)), "never in touch");
        for second in 0..3 {
            steady.renewed(at(second));
            assert!(!steady.is_steady(at(second)));
        }
        steady.renewed(at(3));
        assert!(steady.is_steady(at(3)) && steady.is_steady(at(5)));
        assert!(!steady.is_steady(at(6)), "its own is over");
        steady.renewed(at(20));
        assert!(!steady.is_steady(at(20)), "there was a gap");
        steady.renewed(at(22));
        steady.renewed(at(23));
        assert!(steady.is_steady(at(23)));
        steady.failed();
        steady.renewed(at(24));
        assert!(!steady.is_steady(at(24)));
    }
}
