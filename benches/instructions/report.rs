//! The tables, and the verdict.

use std::fmt::Write;

use crate::{baseline::Baseline, peers::Peer};

/// A call may cost so much more than the baseline says, in percent. The counts of one toolchain repeat to a few instructions;
/// this leaves room for what a change in one place shifts in the compiler's choices at another.
const TOLERANCE: f64 = 3.0;

/// The share of `spawn_blocking`'s instructions, the kernel's among them, that was meant to be reached: must and aim.
const GOAL: (f64, f64) = (0.2, 0.06);

const RENEW: &str = "cargo bench --bench instructions -- --write";

pub(crate) fn exact(now: &Baseline) -> String {
    let mut text = String::from("instructions a call, in user space, on one thread\n\n");
    for (name, count) in &now.scenes {
        let _ = writeln!(text, "{name:<28} {count:>8}");
    }
    text
}

/// The table, and whether all is well: that is so, too, if there is nothing to compare with.
pub(crate) fn comparison(before: &Baseline, now: &Baseline) -> (String, bool) {
    let mut text =
        format!("instructions a call, in user space, on one thread; {TOLERANCE} % more than before are allowed\n\n");
    let _ = writeln!(text, "{:<28} {:>8} {:>8} {:>8} {:>8}", "", "was", "is", "allowed", "change");
    let gated = before.toolchain == now.toolchain;
    let mut all_well = true;
    for (name, is) in &now.scenes {
        let Some(was) = before.scenes.get(name) else {
            let _ = writeln!(text, "{name:<28} {:>8} {is:>8} {:>8} {:>8}  NOT IN THE BASELINE", "", "", "");
            all_well = false;
            continue;
        };
        let allowed = (*was as f64 * (1.0 + TOLERANCE / 100.0)).floor();
        let change = (*is as f64 / *was as f64 - 1.0) * 100.0;
        let verdict = match () {
            () if *is as f64 > allowed => "  TOO MANY",
            () if change < -TOLERANCE => "  fewer: renew the baseline",
            () => "",
        };
        all_well &= *is as f64 <= allowed;
        let _ = writeln!(text, "{name:<28} {was:>8} {is:>8} {allowed:>8} {change:>+7.1}%{verdict}");
    }
    for name in before.scenes.keys().filter(|name| !now.scenes.contains_key(*name)) {
        let _ = writeln!(text, "{name:<28} is in the baseline, and is not counted any more");
        all_well = false;
    }
    if !gated {
        let _ = writeln!(
            text,
            "\nNOT GATED: the baseline is of another toolchain.\n  was {:?}\n  is  {:?}\nRenew it with `{RENEW}`.",
            before.toolchain, now.toolchain
        );
    } else if !all_well {
        let _ = writeln!(text, "\nFAILED. If the change is worth it, renew the baseline with `{RENEW}` and say why.");
    }
    (text, all_well || !gated)
}

pub(crate) fn peers(peers: &[Peer]) -> String {
    let mut text = String::from(
        "\ninstructions a call, 256 at once on current_thread; user space: median (lowest-highest); not gated\n\n",
    );
    let find = |wanted| peers.iter().find(|peer| peer.name == wanted);
    let user = |peer: &Peer| peer.user[0] as f64;
    let blocking = find("spawn_blocking");
    let _ = writeln!(text, "{:<22} {:>8} {:>19} {:>8} {:>12}", "", "user", "", "v s_b", "with kernel");
    for peer in peers {
        let [median, lowest, highest] = peer.user;
        let spread = format!("({lowest}-{highest})");
        let ratio = user(peer) / blocking.map_or(f64::NAN, user);
        let all = peer.all.map_or("-".to_owned(), |all| all.to_string());
        let _ = writeln!(text, "{:<22} {median:>8} {spread:>19} {ratio:>8.2} {all:>12}", peer.name);
    }
    let (must, aim) = GOAL;
    let all = |name| find(name).and_then(|peer| peer.all).map(|all| all as f64);
    let verdict = match all("threads").zip(all("spawn_blocking")).map(|(ours, theirs)| ours / theirs) {
        None => "not measured: the kernel's are most of them, and this machine has no counter".to_owned(),
        Some(ratio) if ratio <= aim => format!("{ratio:.2}, aim met"),
        Some(ratio) if ratio <= must => format!("{ratio:.2}, must met"),
        Some(ratio) => format!("{ratio:.2}, NOT MET"),
    };
    let _ = writeln!(text, "\nthreads v spawn_blocking with the kernel's, <= {must} must, <= {aim} aim: {verdict}");
    text
}
