#![allow(clippy::unwrap_used)]

use std::{
    io,
    sync::{Mutex, mpsc},
    task::Poll,
};

use super::{RunQueue, Runner, Step};

/// Sends its number at each step, and is done after `steps` of them.
struct Item {
    number: u32,
    steps: u32,
    sender: mpsc::Sender<u32>,
}

impl Step for Item {
    fn step(&mut self) -> Poll<()> {
        self.sender.send(self.number).unwrap();
        self.steps -= 1;
        if self.steps == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

fn queue() -> &'static RunQueue<Item> {
    Box::leak(Box::new(RunQueue::new()))
}

#[test]
fn one_thread_runs_many_items_in_turn() {
    let (queue, (sender, steps), spawned) = (queue(), mpsc::channel(), Mutex::new(Vec::new()));
    for number in 0..1000 {
        let item = Item { number, steps: 2, sender: sender.clone() };
        queue.run(item, |run: Runner| {
            spawned.lock().unwrap().push(run);
            Ok(())
        });
    }
    let mut spawned = spawned.into_inner().unwrap();
    assert_eq!(spawned.len(), 1);
    spawned.pop().unwrap()();
    assert!(steps.try_iter().eq((0..1000).chain(0..1000)));
}

#[test]
fn items_run_on_the_calling_thread_if_none_starts() {
    let (queue, (sender, steps)) = (queue(), mpsc::channel());
    for number in 0..2 {
        let item = Item { number, steps: 2, sender: sender.clone() };
        queue.run(item, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        assert_eq!(steps.try_iter().collect::<Vec<_>>(), [number, number]);
    }
}

#[test]
fn a_panicking_step_does_not_end_the_queue() {
    struct Panics(bool, mpsc::Sender<()>);
    impl Step for Panics {
        fn step(&mut self) -> Poll<()> {
            assert!(!self.0, "in a step");
            self.1.send(()).unwrap();
            Poll::Ready(())
        }
    }
    let queue: &'static RunQueue<Panics> = Box::leak(Box::new(RunQueue::new()));
    let ((sender, steps), mut runner) = (mpsc::channel(), None);
    for panics in [true, false] {
        queue.run(Panics(panics, sender.clone()), |run: Runner| {
            runner = Some(run);
            Ok(())
        });
    }
    runner.unwrap()();
    assert_eq!(steps.try_iter().count(), 1);
}
