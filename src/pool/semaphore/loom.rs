use std::sync::Arc;

use loom::thread;
use tokio::sync::oneshot;

use super::{Semaphore, Waiter};
use crate::{
    pool::{CallError, CallKey, permits::PermitKind},
    sync::{
        Ordering::{Relaxed, SeqCst},
        fence, lock,
    },
};

#[test]
fn permit_released_while_a_task_starts_to_wait_reaches_it() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        assert!(semaphore.try_acquire());
        let releaser = thread::spawn({
            let semaphore = semaphore.clone();
            move || semaphore.release()
        });
        // Tokio's channel is not modelled by loom. That is sound here, since it is only touched
        // under the lock or by this thread.
        let mut permit = semaphore.enqueue(PermitKind::Limited, None).unwrap();
        releaser.join().unwrap();
        assert!(permit.try_recv().is_ok());
        assert_eq!(semaphore.in_use().total(), 1);
        semaphore.release();
        assert!(semaphore.try_acquire());
    });
}

#[test]
fn limit_raised_while_a_task_starts_to_wait_serves_it() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(2));
        semaphore.set_limit(1, 1);
        assert!(semaphore.try_acquire());
        let other = thread::spawn({
            let semaphore = semaphore.clone();
            move || {
                semaphore.set_limit(2, 2);
                semaphore.serve_waiters();
            }
        });
        let mut permit = semaphore.enqueue(PermitKind::Limited, None).unwrap();
        other.join().unwrap();
        assert!(permit.try_recv().is_ok());
        assert_eq!(semaphore.in_use().total(), 2);
    });
}

#[test]
fn permits_never_exceed_the_capacity() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        let acquire = |semaphore: Arc<Semaphore>| {
            move || {
                if semaphore.try_acquire() {
                    assert_eq!(semaphore.in_use().total(), 1);
                    semaphore.release();
                }
            }
        };
        let other = thread::spawn(acquire(semaphore.clone()));
        acquire(semaphore.clone())();
        other.join().unwrap();
        assert_eq!(semaphore.in_use().total(), 0);
    });
}

#[test]
fn cancelled_wait_does_not_keep_a_permit() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        assert!(semaphore.try_acquire());
        let (mut first, mut second) = (
            semaphore.enqueue(PermitKind::Limited, None).unwrap(),
            semaphore.enqueue(PermitKind::Limited, None).unwrap(),
        );
        let releaser = thread::spawn({
            let semaphore = semaphore.clone();
            move || semaphore.release()
        });
        // As in the drop of `Wait`.
        first.close();
        if first.try_recv().is_ok() {
            semaphore.release();
        }
        releaser.join().unwrap();
        assert!(second.try_recv().is_ok());
        assert_eq!(semaphore.in_use().total(), 1);
    });
}

/// One of two permits is left, which the key that has the other one may not have.
fn last_permit_is_not_refused_while_another_key_is(other: Option<CallKey>, waits: bool) {
    loom::model(move || {
        let semaphore = Arc::new(Semaphore::with_shares(2));
        let greedy = Some(CallKey::new(&1));
        semaphore.try_acquire_share(PermitKind::Limited, greedy).unwrap();
        let thread = thread::spawn({
            let semaphore = semaphore.clone();
            move || {
                if waits {
                    assert!(semaphore.enqueue(PermitKind::Limited, greedy).unwrap().try_recv().is_err());
                } else {
                    let refused = semaphore.try_acquire_share(PermitKind::Limited, greedy).unwrap_err();
                    assert!(matches!(refused, CallError::KeyLimited | CallError::Overloaded));
                }
            }
        });
        assert_eq!(semaphore.try_acquire_share(PermitKind::Limited, other), Ok(()));
        thread.join().unwrap();
        assert_eq!(semaphore.in_use().total(), 2);
    });
}

#[test]
fn last_permit_goes_to_a_call_without_a_key() {
    last_permit_is_not_refused_while_another_key_is(None, false);
}

#[test]
fn last_permit_goes_to_another_key() {
    last_permit_is_not_refused_while_another_key_is(Some(CallKey::new(&2)), false);
}

#[test]
fn last_permit_goes_to_a_call_without_a_key_while_a_key_starts_to_wait() {
    last_permit_is_not_refused_while_another_key_is(None, true);
}

#[test]
fn last_permit_goes_to_another_key_while_a_key_starts_to_wait() {
    last_permit_is_not_refused_while_another_key_is(Some(CallKey::new(&2)), true);
}

#[test]
fn permit_is_not_refused_while_a_cancelled_waiter_is_removed() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        let thread = thread::spawn({
            let semaphore = semaphore.clone();
            move || {
                let served = {
                    let mut waiters = lock(&semaphore.waiters);
                    let (sender, _) = oneshot::channel();
                    waiters.push(Waiter { kind: PermitKind::Limited, key: None, sender, has_permit: false });
                    semaphore.has_waiters.store(true, Relaxed);
                    fence(SeqCst);
                    semaphore.serve(&mut waiters).0
                };
                semaphore.send(served);
            }
        });
        assert!(semaphore.try_acquire());
        thread.join().unwrap();
        assert_eq!(semaphore.in_use().total(), 1);
    });
}

#[test]
fn permits_of_both_kinds_never_exceed_the_capacity() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::with_shares(1));
        let acquire = |semaphore: Arc<Semaphore>, kind| {
            move || {
                if semaphore.try_acquire_share(kind, None).is_ok() {
                    assert_eq!(semaphore.in_use().total(), 1);
                    semaphore.release_share(kind, None);
                }
            }
        };
        let other = thread::spawn(acquire(semaphore.clone(), PermitKind::Exempt));
        acquire(semaphore.clone(), PermitKind::Limited)();
        other.join().unwrap();
        assert_eq!(semaphore.in_use().total(), 0);
    });
}

#[test]
fn exempt_permit_released_while_a_task_starts_to_wait_reaches_it() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::with_shares(2));
        semaphore.set_limit(1, 1);
        assert!(semaphore.try_acquire());
        semaphore.try_acquire_share(PermitKind::Exempt, None).unwrap();
        let other = thread::spawn({
            let semaphore = semaphore.clone();
            move || semaphore.release_share(PermitKind::Exempt, None)
        });
        let mut permit = semaphore.enqueue(PermitKind::Exempt, None).unwrap();
        other.join().unwrap();
        assert!(permit.try_recv().is_ok());
        assert_eq!((semaphore.in_use().limited(), semaphore.in_use().total()), (1, 2));
    });
}
