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

#[test]
fn keys_that_wait_take_turns_and_cancelled_waiters_use_none() {
    let semaphore = Semaphore::new(1);
    assert!(semaphore.try_acquire());
    let (greedy, quiet) = (Some(CallKey::new(&1)), Some(CallKey::new(&2)));
    let mut waiters: Vec<_> = (0..10).map(|_| semaphore.enqueue(greedy).unwrap()).collect();
    drop(semaphore.enqueue(quiet).unwrap());
    let mut others = [semaphore.enqueue(quiet).unwrap(), semaphore.enqueue(None).unwrap()];
    (0..3).for_each(|_| semaphore.release());
    assert!(others.iter_mut().all(|waiter| waiter.try_recv().is_ok()));
    assert_eq!(waiters.iter_mut().filter_map(|waiter| waiter.try_recv().ok()).count(), 1);
    waiters.clear();
    semaphore.release();
    assert!(!semaphore.has_waiters.load(Relaxed));
    assert_eq!(semaphore.in_use(), 0);
}

#[test]
fn key_that_waits_for_its_share_leaves_the_others_to_others() {
    let semaphore = Semaphore::with_shares(8);
    let (greedy, quiet) = (Some(CallKey::new(&1)), Some(CallKey::new(&2)));
    let mut waiters: Vec<_> = (0..20).map(|_| semaphore.enqueue(greedy).unwrap()).collect();
    let mut served = || waiters.iter_mut().filter_map(|waiter| waiter.try_recv().ok()).count();
    assert_eq!((served(), semaphore.in_use()), (4, 4));
    assert_eq!(semaphore.try_acquire_share(greedy), Err(CallError::KeyLimited));
    assert_eq!(semaphore.try_acquire_share(quiet), Ok(()));
    assert_eq!(semaphore.try_acquire_share(None), Ok(()));
    assert_eq!((served(), semaphore.in_use(), semaphore.released()), (0, 6, 0));
    (0..2).for_each(|_| semaphore.release_share(greedy));
    assert_eq!((served(), semaphore.in_use()), (1, 5), "three of the key, and three are left");
    semaphore.release_share(quiet);
    assert_eq!((served(), semaphore.in_use()), (1, 5));
    drop(waiters);
    (0..4).for_each(|_| semaphore.release_share(greedy));
    semaphore.release_share(None);
    assert_eq!(semaphore.in_use(), 0);
    assert!(!semaphore.has_waiters.load(Relaxed));
}
