use super::*;

#[test]
fn cancelled_waiters_are_removed() {
    let semaphore = Semaphore::new(1);
    assert!(semaphore.try_acquire());
    let waiter = semaphore.enqueue(None).unwrap();
    for _ in 0..10_000 {
        drop(semaphore.enqueue(None).unwrap());
        semaphore.on_cancel();
    }
    assert!(lock(&semaphore.waiters).queue.len() < 10);
    semaphore.release();
    assert_eq!((waiter.blocking_recv(), semaphore.in_use()), (Ok(()), 1));
    assert!(!semaphore.has_waiters.load(Relaxed));
}
