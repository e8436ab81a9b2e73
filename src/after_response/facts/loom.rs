use std::sync::Arc;

use loom::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
};

use super::Facts;
use crate::sync::{Mutex, lock};

#[test]
fn of_the_response_and_the_wire_exactly_one_settles_and_sees_both() {
    loom::model(|| {
        let shared = Arc::new((Facts::new(true), AtomicU32::new(0), AtomicU32::new(0)));
        let wire = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.1.store(1, Relaxed);
                let settles = shared.0.told();
                assert!(!settles || shared.2.load(Relaxed) == 1);
                settles
            }
        });
        shared.2.store(1, Relaxed);
        let settles = shared.0.released();
        assert!(!settles || shared.1.load(Relaxed) == 1);
        assert!(settles ^ wire.join().unwrap());
    });
}

#[test]
fn a_response_that_needs_no_word_of_the_wire_is_settled_once() {
    loom::model(|| {
        let facts = Arc::new(Facts::new(true));
        let wire = thread::spawn({
            let facts = facts.clone();
            move || facts.told()
        });
        assert!(facts.released_for_good());
        assert!(!wire.join().unwrap());
    });
}

#[test]
fn what_is_registered_while_the_response_settles_runs_once() {
    loom::model(|| {
        let shared = Arc::new((Facts::new(false), Mutex::new(Vec::new()), AtomicU32::new(0)));
        let registering = thread::spawn({
            let shared = shared.clone();
            move || {
                lock(&shared.1).push(1);
                if shared.0.registered() {
                    shared.2.fetch_add(lock(&shared.1).drain(..).sum(), Relaxed);
                }
            }
        });
        assert!(shared.0.released());
        if shared.0.settled() {
            shared.2.fetch_add(lock(&shared.1).drain(..).sum(), Relaxed);
        }
        registering.join().unwrap();
        assert_eq!(shared.2.load(Relaxed), 1);
    });
}
