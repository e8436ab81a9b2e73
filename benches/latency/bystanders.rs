//! What the rest of the machine did during a run.

use std::{fs, process};

/// The CPU time that everybody has used since boot, and of that the benchmark and one server, in the kernel's ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    all: u64,
    busy: u64,
    ours: u64,
}

impl Usage {
    /// None where there is no `/proc` to ask.
    pub(crate) fn now(server: u32) -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        // user, nice, system, idle, iowait, irq, softirq, steal; the guest times after them are part of user already.
        let times: Vec<u64> =
            stat.lines().next()?.split_whitespace().skip(1).take(8).map_while(|it| it.parse().ok()).collect();
        let all = times.iter().sum();
        let busy = all - times.get(3)? - times.get(4)?;
        Some(Self { all, busy, ours: of_process(process::id())? + of_process(server)? })
    }

    /// How much of all cores others have had since then, in percent; what a hypervisor took away counts too.
    pub(crate) fn others_percent_since(self, earlier: Self) -> f64 {
        let others = (self.busy - earlier.busy).saturating_sub(self.ours - earlier.ours);
        100.0 * others as f64 / (self.all - earlier.all).max(1) as f64
    }
}

/// User and system time of all threads.
fn of_process(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in brackets, may contain anything; of the fields after it these are the 12th and 13th.
    let (_, fields) = stat.rsplit_once(')')?;
    let times: Vec<u64> = fields.split_whitespace().skip(11).take(2).map_while(|it| it.parse().ok()).collect();
    Some(times.first()? + times.get(1)?)
}
