//! Rounds of random calls.

use std::{env, thread, time::Duration};

use tokio::time::Instant;

use crate::{presence, round::Round, verdict::Verdict};

/// Plays rounds until `calls` calls were made and `at_least` has passed. Each round's seed is that
/// of the previous one plus one.
fn play(calls: u64, at_least: Duration) {
    let mut seed = number("STRESS_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 32);
    println!("STRESS_SEED={seed}");
    let began = Instant::now();
    let (mut total, mut rounds) = (Verdict::default(), 0);
    while total.calls < calls || began.elapsed() < at_least {
        total.add(Round::new(seed).play());
        seed = seed.wrapping_add(1);
        rounds += 1;
    }
    println!("{rounds} rounds in {:.1} s: {total:?}", began.elapsed().as_secs_f64());
    // Calls have ended in every way.
    let Verdict { values, panics, overloaded, closed, left, .. } = total;
    assert!([values, panics, overloaded, closed, left].iter().all(|ways| *ways > 0), "{total:?}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while presence::threads() > 0 {
        assert!(Instant::now() < deadline, "{} threads outlive their pools", presence::threads());
        thread::sleep(Duration::from_millis(1)); // a thread that exits sends no notification
    }
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().expect("a number"))
}

#[test]
fn random_calls_are_neither_lost_nor_run_twice() {
    play(200_000, Duration::ZERO);
}

#[test]
#[ignore = "takes minutes: `STRESS_SECONDS`, and three million calls in any case; see CONTRIBUTING.md"]
fn random_calls_of_the_long_form() {
    play(3_000_000, Duration::from_secs(number("STRESS_SECONDS").unwrap_or(120)));
}
