use proptest::{collection::vec, prelude::*};

use super::*;

fn queue(ends: &[u64]) -> Queue<usize> {
    let (mut queue, now) = (Queue::default(), Instant::now());
    ends.iter().enumerate().for_each(|(number, &end)| queue.push(number, end, now + TIMEOUT));
    queue
}

fn taken(take: impl FnOnce(&mut Vec<usize>)) -> Vec<usize> {
    let mut taken = Vec::new();
    take(&mut taken);
    taken
}

#[test]
fn response_is_acknowledged_with_its_last_byte() {
    let mut queue = queue(&[100, 100, 101]);
    assert_eq!(taken(|taken| queue.take_acknowledged(99, |it| taken.push(it))), [0; 0]);
    assert_eq!(taken(|taken| queue.take_acknowledged(100, |it| taken.push(it))), [0, 1]);
    assert_eq!(taken(|taken| queue.take_acknowledged(u64::MAX, |it| taken.push(it))), [2]);
    assert!(queue.is_empty());
}

#[test]
fn shutdown_shortens_the_wait_and_never_extends_it() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    queue.push(0, 1, now + Duration::from_secs(1));
    queue.push(1, 2, now + TIMEOUT);
    queue.limit(now + SHUTDOWN_TIMEOUT);
    let mut at = |seconds| taken(|taken| queue.take_expired(now + Duration::from_secs(seconds), |it| taken.push(it)));
    assert_eq!((at(0), at(1), at(4), at(5)), (vec![], vec![0], vec![], vec![1]));
}

proptest! {
    /// Each response is taken once, in order, and not before its end is acknowledged.
    #[test]
    fn responses_are_taken_in_order_of_their_ends(sizes in vec(0_u64..5, 0..40), steps in vec(0_u64..9, 0..40)) {
        let ends: Vec<_> = sizes.iter().scan(0, |end, size| { *end += size; Some(*end) }).collect();
        let (mut queue, mut acknowledged, mut next) = (queue(&ends), 0, 0);
        for step in steps {
            acknowledged += step;
            queue.take_acknowledged(acknowledged, |number| {
                assert_eq!(number, next);
                next += 1;
            });
            prop_assert_eq!(next, ends.iter().filter(|end| **end <= acknowledged).count());
        }
        prop_assert_eq!(queue.len(), ends.len() - next);
    }
}
