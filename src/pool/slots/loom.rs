use std::sync::Arc;

use loom::{future::block_on, thread};

use super::Slots;

#[test]
fn a_place_that_is_given_back_while_another_starts_to_wait_reaches_it() {
    loom::model(|| {
        let slots = Arc::new(Slots::new(1));
        assert!(slots.try_take());
        let giver = thread::spawn({
            let slots = slots.clone();
            move || slots.give()
        });
        // Tokio's channel is not loom's, but it is touched under the lock or polled here: a place that is never sent is
        // a `block_on` that never ends, and loom reports it.
        let mut place = slots.wait().unwrap();
        giver.join().unwrap();
        assert!(place.try_recv().is_ok());
        assert_eq!(slots.taken(), 1);
        slots.give();
        assert!(slots.try_take());
    });
}

#[test]
fn never_more_are_taken_than_there_are() {
    loom::model(|| {
        let slots = Arc::new(Slots::new(1));
        let take = |slots: Arc<Slots>| {
            move || {
                if slots.try_take() {
                    assert_eq!(slots.taken(), 1);
                    slots.give();
                }
            }
        };
        let other = thread::spawn(take(slots.clone()));
        take(slots.clone())();
        other.join().unwrap();
        assert_eq!(slots.taken(), 0);
        let _ = block_on(async {});
    });
}

#[test]
fn one_who_stops_waiting_does_not_take_the_place_along() {
    loom::model(|| {
        let slots = Arc::new(Slots::new(1));
        assert!(slots.try_take());
        let (mut first, mut second) = (slots.wait().unwrap(), slots.wait().unwrap());
        let giver = thread::spawn({
            let slots = slots.clone();
            move || slots.give()
        });
        // What `Gate::slot` does when it is dropped.
        first.close();
        if first.try_recv().is_ok() {
            slots.give();
        }
        giver.join().unwrap();
        assert!(second.try_recv().is_ok());
        assert_eq!(slots.taken(), 1);
    });
}
