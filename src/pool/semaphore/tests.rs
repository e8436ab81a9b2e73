use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Wake, Waker},
};

use super::*;

const LIMITED: PermitKind = PermitKind::Limited;
const EXEMPT: PermitKind = PermitKind::Exempt;

/// A waker whose drop is user code that looks at the semaphore.
struct Looks(Arc<Semaphore>);

impl Wake for Looks {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Looks {
    fn drop(&mut self) {
        assert!(self.0.waiters.try_lock().is_ok(), "a waker is dropped under the lock");
    }
}

#[test]
fn wakers_of_cancelled_waiters_are_dropped_without_the_lock() {
    for key in [None, Some(CallKey::new(&1))] {
        let semaphore = Arc::new(Semaphore::new(1));
        assert!(semaphore.try_acquire());
        for is_removed_by_release in [false, true] {
            let other = semaphore.enqueue(LIMITED, None).unwrap();
            {
                let mut wait = pin!(semaphore.acquire(LIMITED, key));
                let waker = Waker::from(Arc::new(Looks(semaphore.clone())));
                assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                drop(waker);
                // One of two waiters is removed when it leaves. One of more waits for its turn.
                let _others =
                    is_removed_by_release.then(|| [(); 2].map(|()| semaphore.enqueue(LIMITED, None).unwrap()));
            }
            semaphore.release();
            assert_eq!(other.blocking_recv(), Ok(()));
        }
        semaphore.release();
        assert_eq!((semaphore.in_use().total(), lock(&semaphore.waiters).len()), (0, 0));
    }
}

#[test]
fn limit_may_be_the_largest_number() {
    let semaphore = Semaphore::with_shares(usize::MAX);
    let key = Some(CallKey::new(&1));
    assert_eq!(semaphore.try_acquire_share(LIMITED, key), Ok(()));
    assert_eq!(semaphore.enqueue(LIMITED, key).unwrap().blocking_recv(), Ok(()));
    assert_eq!(semaphore.enqueue(LIMITED, None).unwrap().blocking_recv(), Ok(()));
    assert_eq!(semaphore.in_use().total(), 3);
}

#[test]
fn cancelled_waiters_are_removed() {
    let semaphore = Semaphore::new(1);
    assert!(semaphore.try_acquire());
    let waiter = semaphore.enqueue(LIMITED, None).unwrap();
    for _ in 0..10_000 {
        drop(semaphore.enqueue(LIMITED, None).unwrap());
        semaphore.on_cancel();
    }
    assert!(lock(&semaphore.waiters).len() < 10);
    semaphore.release();
    assert_eq!((waiter.blocking_recv(), semaphore.in_use().total()), (Ok(()), 1));
    assert!(!semaphore.has_waiters.load(Relaxed));
}

#[test]
fn keys_that_wait_take_turns_and_cancelled_waiters_use_none() {
    let semaphore = Semaphore::new(1);
    assert!(semaphore.try_acquire());
    let (greedy, quiet) = (Some(CallKey::new(&1)), Some(CallKey::new(&2)));
    let mut waiters: Vec<_> = (0..10).map(|_| semaphore.enqueue(LIMITED, greedy).unwrap()).collect();
    drop(semaphore.enqueue(LIMITED, quiet).unwrap());
    let mut others = [semaphore.enqueue(LIMITED, quiet).unwrap(), semaphore.enqueue(LIMITED, None).unwrap()];
    (0..3).for_each(|_| semaphore.release());
    assert!(others.iter_mut().all(|waiter| waiter.try_recv().is_ok()));
    assert_eq!(waiters.iter_mut().filter_map(|waiter| waiter.try_recv().ok()).count(), 1);
    waiters.clear();
    semaphore.release();
    assert!(!semaphore.has_waiters.load(Relaxed));
    assert_eq!(semaphore.in_use().total(), 0);
}

#[test]
fn key_that_waits_for_its_share_leaves_the_others_to_others() {
    let semaphore = Semaphore::with_shares(8);
    let (greedy, quiet) = (Some(CallKey::new(&1)), Some(CallKey::new(&2)));
    let mut waiters: Vec<_> = (0..20).map(|_| semaphore.enqueue(LIMITED, greedy).unwrap()).collect();
    let mut served = || waiters.iter_mut().filter_map(|waiter| waiter.try_recv().ok()).count();
    assert_eq!((served(), semaphore.in_use().total()), (4, 4));
    assert_eq!(semaphore.try_acquire_share(LIMITED, greedy), Err(CallError::KeyLimited));
    assert_eq!(semaphore.try_acquire_share(LIMITED, quiet), Ok(()));
    assert_eq!(semaphore.try_acquire_share(LIMITED, None), Ok(()));
    assert_eq!((served(), semaphore.in_use().total(), semaphore.limited_released()), (0, 6, 0));
    (0..2).for_each(|_| semaphore.release_share(LIMITED, greedy));
    assert_eq!((served(), semaphore.in_use().total()), (1, 5), "three of the key, and three are left");
    semaphore.release_share(LIMITED, quiet);
    assert_eq!((served(), semaphore.in_use().total()), (1, 5));
    drop(waiters);
    (0..4).for_each(|_| semaphore.release_share(LIMITED, greedy));
    semaphore.release_share(LIMITED, None);
    assert_eq!(semaphore.in_use().total(), 0);
    assert!(!semaphore.has_waiters.load(Relaxed));
}

#[test]
fn exempt_permits_count_toward_the_capacity_only() {
    let semaphore = Semaphore::with_shares(8);
    semaphore.set_limit(2, 2);
    let acquire = |kind| semaphore.try_acquire_share(kind, None);
    for _ in 0..5 {
        assert_eq!(acquire(EXEMPT), Ok(()));
    }
    assert_eq!([(); 3].map(|()| acquire(LIMITED)), [Ok(()), Ok(()), Err(CallError::Overloaded)]);
    assert_eq!([(); 2].map(|()| acquire(EXEMPT)), [Ok(()), Err(CallError::Overloaded)]);
    let in_use = semaphore.in_use();
    assert_eq!((in_use.limited(), in_use.total()), (2, 8));
    semaphore.set_limit(8, 8);
    assert_eq!(acquire(LIMITED), Err(CallError::Overloaded), "the capacity is used up");
    (0..6).for_each(|_| semaphore.release_share(EXEMPT, None));
    (0..2).for_each(|_| semaphore.release_share(LIMITED, None));
    assert_eq!((semaphore.in_use().total(), semaphore.limited_released()), (0, 2));
}

#[test]
fn exempt_permit_is_not_refused_while_tasks_wait_for_the_limit() {
    let semaphore = Semaphore::with_shares(3);
    semaphore.set_limit(1, 1);
    assert!(semaphore.try_acquire());
    let mut waiter = semaphore.enqueue(LIMITED, None).unwrap();
    assert_eq!(semaphore.try_acquire_share(EXEMPT, None), Ok(()));
    assert_eq!(semaphore.try_acquire_share(EXEMPT, Some(CallKey::new(&1))), Ok(()));
    assert!(waiter.try_recv().is_err());
    semaphore.release_share(EXEMPT, None);
    assert!(waiter.try_recv().is_err(), "the limit is used up");
    semaphore.release();
    assert!(waiter.try_recv().is_ok());
}

#[test]
fn exempt_waiter_needs_no_place_of_the_limit() {
    for waits_behind_others in [false, true] {
        let semaphore = Semaphore::with_shares(3);
        semaphore.set_limit(1, 1);
        assert!(semaphore.try_acquire());
        (0..2).for_each(|_| assert_eq!(semaphore.try_acquire_share(EXEMPT, None), Ok(())));
        let mut limited = waits_behind_others.then(|| semaphore.enqueue(LIMITED, None).unwrap());
        let mut waiter = semaphore.enqueue(EXEMPT, None).unwrap();
        assert!(waiter.try_recv().is_err(), "the capacity is used up");
        semaphore.release_share(EXEMPT, None);
        assert!(waiter.try_recv().is_ok());
        let in_use = semaphore.in_use();
        assert_eq!((in_use.limited(), in_use.total()), (1, 3));
        if let Some(limited) = &mut limited {
            assert!(limited.try_recv().is_err(), "the limit is used up");
            semaphore.release();
            assert!(limited.try_recv().is_ok());
        }
    }
}

#[test]
fn exempt_and_limited_waiters_take_turns() {
    let semaphore = Semaphore::new(1);
    assert!(semaphore.try_acquire());
    let mut waiters: Vec<_> = [EXEMPT, EXEMPT, EXEMPT, LIMITED, LIMITED, LIMITED]
        .map(|kind| (kind, semaphore.enqueue(kind, None).unwrap()))
        .into_iter()
        .collect();
    let (mut served, mut held) = (Vec::new(), LIMITED);
    while !waiters.is_empty() {
        semaphore.release_share(held, None);
        let next = waiters.iter_mut().position(|(_, waiter)| waiter.try_recv().is_ok()).unwrap();
        held = waiters.remove(next).0;
        served.push(held);
    }
    assert!(served.chunks(2).all(|turns| turns[0] != turns[1]), "{served:?}");
    semaphore.release_share(held, None);
    assert_eq!(semaphore.in_use(), Permits::default());
    assert!(!semaphore.has_waiters.load(Relaxed));
}

#[test]
fn exempt_waiter_that_leaves_keeps_no_permit() {
    for is_served in [false, true] {
        let semaphore = Semaphore::with_shares(2);
        (0..2).for_each(|_| assert_eq!(semaphore.try_acquire_share(EXEMPT, None), Ok(())));
        {
            let mut wait = pin!(semaphore.acquire(EXEMPT, None));
            assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            if is_served {
                semaphore.release_share(EXEMPT, None);
                assert_eq!(semaphore.in_use().total(), 2);
            }
        }
        (usize::from(is_served)..2).for_each(|_| semaphore.release_share(EXEMPT, None));
        assert_eq!((semaphore.in_use(), semaphore.limited_released()), (Permits::default(), 0));
        assert!(!semaphore.has_waiters.load(Relaxed));
    }
}

#[test]
fn numbers_of_permits_survive_the_overflow_of_their_counters() {
    let semaphore = Semaphore::with_shares(4);
    for counter in [&semaphore.acquire.acquired, &semaphore.acquire.released, &*semaphore.released] {
        counter.store(u64::MAX - 1, Relaxed);
    }
    for _ in 0..4 {
        for kind in [LIMITED, EXEMPT, LIMITED] {
            assert_eq!(semaphore.try_acquire_share(kind, None), Ok(()));
        }
        let in_use = semaphore.in_use();
        assert_eq!((in_use.limited(), in_use.total()), (2, 3));
        for kind in [LIMITED, EXEMPT, LIMITED] {
            semaphore.release_share(kind, None);
        }
    }
    assert_eq!((semaphore.in_use().total(), semaphore.limited_released()), (0, 6));
}
