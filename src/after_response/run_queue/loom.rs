use std::{sync::Arc, task::Poll};

use loom::thread;

use super::{RunQueue, Step};
use crate::sync::{AtomicUsize, Ordering::Relaxed};

/// Counts its steps. It takes two.
struct Item {
    steps: Arc<AtomicUsize>,
    is_last: bool,
}

impl Step for Item {
    fn step(&mut self) -> Poll<()> {
        self.steps.fetch_add(1, Relaxed);
        if std::mem::replace(&mut self.is_last, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Two threads add an item each, and run the queue if they must.
#[test]
fn each_item_runs_to_its_end_by_one_runner() {
    loom::model(|| {
        let (queue, steps) = (Arc::new(RunQueue::new()), Arc::new(AtomicUsize::new(0)));
        let add = |queue: &RunQueue<Item>, steps: &Arc<AtomicUsize>| {
            if queue.push(Item { steps: steps.clone(), is_last: false }) {
                queue.run_all();
            }
        };
        let other = thread::spawn({
            let (queue, steps) = (queue.clone(), steps.clone());
            move || add(&queue, &steps)
        });
        add(&queue, &steps);
        other.join().unwrap();
        assert_eq!(steps.load(Relaxed), 4);
        assert!(queue.push(Item { steps, is_last: true }), "no runner is left");
    });
}
