use std::sync::Arc;

use loom::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
};

use super::ExchangeState;
use crate::sync::{Mutex, lock};

#[test]
fn exactly_one_side_settles_and_sees_both() {
    loom::model(|| {
        let shared = Arc::new((ExchangeState::new(true), AtomicU32::new(0), AtomicU32::new(0)));
        let connection = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.1.store(1, Relaxed);
                let settles = shared.0.set_flush_known();
                assert!(!settles || shared.2.load(Relaxed) == 1);
                settles
            }
        });
        shared.2.store(1, Relaxed);
        let settles = shared.0.drop_guard(true);
        assert!(!settles || shared.1.load(Relaxed) == 1);
        assert!(settles ^ connection.join().unwrap());
    });
}

#[test]
fn incomplete_response_settles_once_without_the_connection() {
    loom::model(|| {
        let state = Arc::new(ExchangeState::new(true));
        let connection = thread::spawn({
            let state = state.clone();
            move || state.set_flush_known()
        });
        assert!(state.drop_guard(false));
        assert!(!connection.join().unwrap());
    });
}

#[test]
fn response_that_is_given_up_settles_once() {
    loom::model(|| {
        let state = Arc::new(ExchangeState::new(true));
        state.end_body();
        let connection = thread::spawn({
            let state = state.clone();
            move || state.give_up()
        });
        let settles = state.drop_guard(true);
        assert!(settles ^ connection.join().unwrap());
    });
}

#[test]
fn decision_during_settling_is_seen_by_a_driver() {
    loom::model(|| {
        // The second value is the decision, the third the number of drivers that saw it.
        let shared = Arc::new((ExchangeState::new(false), AtomicU32::new(0), AtomicU32::new(0)));
        let drive = |shared: &(ExchangeState, AtomicU32, AtomicU32)| {
            shared.2.fetch_add(shared.1.load(Relaxed), Relaxed);
        };
        let handler = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.1.store(1, Relaxed);
                if shared.0.on_decided() {
                    drive(&shared);
                }
            }
        });
        let registering = thread::spawn({
            let shared = shared.clone();
            move || {
                if shared.0.register() {
                    drive(&shared);
                }
            }
        });
        assert!(shared.0.drop_guard(true));
        if shared.0.settle() {
            drive(&shared);
        }
        handler.join().unwrap();
        registering.join().unwrap();
        assert!(shared.2.load(Relaxed) >= 1);
    });
}

#[test]
fn registration_during_settling_runs_once() {
    loom::model(|| {
        let shared = Arc::new((ExchangeState::new(false), Mutex::new(Vec::new()), AtomicU32::new(0)));
        let registering = thread::spawn({
            let shared = shared.clone();
            move || {
                lock(&shared.1).push(1);
                if shared.0.register() {
                    shared.2.fetch_add(lock(&shared.1).drain(..).sum(), Relaxed);
                }
            }
        });
        assert!(shared.0.drop_guard(true));
        if shared.0.settle() {
            shared.2.fetch_add(lock(&shared.1).drain(..).sum(), Relaxed);
        }
        registering.join().unwrap();
        assert_eq!(shared.2.load(Relaxed), 1);
    });
}
