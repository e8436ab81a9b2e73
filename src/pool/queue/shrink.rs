use std::collections::VecDeque;

/// An idle pool keeps room for so many jobs in each of its queues, 16 KiB.
const KEPT: usize = 1024;

/// Frees what a burst made a queue take, if it is over.
pub(in crate::pool) fn shrink<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > KEPT && queue.is_empty() {
        *queue = VecDeque::new();
    }
}
