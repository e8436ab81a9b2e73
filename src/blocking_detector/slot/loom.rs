use loom::{
    cell::UnsafeCell,
    sync::{Arc, Mutex},
    thread,
};

use super::{Slot, Visit};

/// A cell that loom checks: it fails a model in which two threads access the cell at once, or
/// without an order between them.
struct Checked(UnsafeCell<u32>);

#[allow(unsafe_code)]
// SAFETY: loom checks every access.
unsafe impl Sync for Checked {}
#[allow(unsafe_code)]
// SAFETY: loom checks every access.
unsafe impl Send for Checked {}

impl Checked {
    fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn read(&self) {
        self.0.with(|_| ());
    }

    fn write(&self) {
        self.0.with_mut(|_| ());
    }
}

impl Default for Checked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.write();
    }
}

fn attached() -> Arc<Slot<Checked, Checked>> {
    let slot = Arc::new(Slot::new());
    slot.attach();
    slot
}

/// Runs a step and then writes what it has borrowed.
fn step(slot: &Slot<Checked, Checked>, work: impl FnOnce()) {
    let watched = Checked::new();
    slot.run(&watched, || unreachable!("the slot is attached"), work);
    watched.write();
}

fn visit(slot: &Slot<Checked, Checked>) -> usize {
    let mut visited = 0;
    slot.visit(|watched, note| {
        watched.read();
        note.write();
        visited += 1;
    });
    visited
}

/// The frame, its note and what it borrows are dropped or written once the step has ended.
#[test]
fn visited_steps_are_alive() {
    loom::model(|| {
        let slot = attached();
        let watchdog = thread::spawn({
            let slot = slot.clone();
            move || assert!(visit(&slot) <= 1)
        });
        step(&slot, || {});
        step(&slot, || {});
        watchdog.join().unwrap();
    });
}

#[test]
fn nested_steps_are_visited_from_the_innermost_outwards() {
    loom::model(|| {
        let slot = attached();
        let watchdog = thread::spawn({
            let slot = slot.clone();
            move || assert!(visit(&slot) <= 2)
        });
        step(&slot, || step(&slot, || {}));
        watchdog.join().unwrap();
    });
    loom::model(|| {
        let slot = attached();
        step(&slot, || step(&slot, || assert_eq!(visit(&slot), 2)));
        assert_eq!(visit(&slot), 0);
    });
}

/// The watchdog removes an idle slot from its list while the owner begins a step.
#[test]
fn step_that_begins_while_the_slot_is_detached_is_watched() {
    loom::model(|| {
        let (slot, is_listed) = (attached(), Arc::new(Mutex::new(true)));
        let watchdog = thread::spawn({
            let (slot, is_listed) = (slot.clone(), is_listed.clone());
            move || {
                for _ in 0..2 {
                    let mut is_listed = is_listed.lock().unwrap();
                    let visit = slot.visit(|watched, _| watched.read());
                    if visit == Visit::Idle && slot.try_detach() {
                        *is_listed = false;
                        return;
                    }
                }
            }
        });
        let attach = || {
            let mut is_listed = is_listed.lock().unwrap();
            *is_listed = true;
            slot.attach();
        };
        let watched = Checked::new();
        slot.run(&watched, attach, || assert!(*is_listed.lock().unwrap(), "a step of a slot that is not visited"));
        watchdog.join().unwrap();
    });
}
