//! What the rest of the machine did meanwhile.

use std::fs;

/// The CPU time that everybody has used since boot, and of that the benchmark with its finished runs, in the kernel's ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    all: u64,
    busy: u64,
    ours: u64,
}

impl Usage {
    /// None where there is no `/proc` to ask.
    pub(crate) fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        // user, nice, system, idle, iowait, irq, softirq, steal; the guest times after them are part of user already.
        let times = numbers(stat.lines().next()?, 1, 8);
        let all = times.iter().sum();
        let busy = all - times.get(3)? - times.get(4)?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name, in brackets, may contain anything. Of the fields after it the 12th to 15th are the user and system time
        // of all threads, and of all children that have ended.
        let (_, fields) = stat.rsplit_once(')')?;
        Some(Self { all, busy, ours: numbers(fields, 11, 4).iter().sum() })
    }

    /// How much of all cores others have had since then, in percent; what a hypervisor took away counts too.
    pub(crate) fn others_percent_since(self, earlier: Self) -> f64 {
        let others = (self.busy - earlier.busy).saturating_sub(self.ours - earlier.ours);
        100.0 * others as f64 / (self.all - earlier.all).max(1) as f64
    }
}

fn numbers(fields: &str, skip: usize, take: usize) -> Vec<u64> {
    fields.split_whitespace().skip(skip).take(take).map_while(|it| it.parse().ok()).collect()
}
