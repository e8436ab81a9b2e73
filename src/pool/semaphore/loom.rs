use std::sync::Arc;

use loom::thread;

use super::Semaphore;

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
        let mut permit = semaphore.enqueue(None).unwrap();
        releaser.join().unwrap();
        assert!(permit.try_recv().is_ok());
        assert_eq!(semaphore.in_use(), 1);
        semaphore.release();
        assert!(semaphore.try_acquire());
    });
}

#[test]
fn limit_raised_while_a_task_starts_to_wait_serves_it() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        assert!(semaphore.try_acquire());
        let other = thread::spawn({
            let semaphore = semaphore.clone();
            move || {
                semaphore.set_limit(2);
                semaphore.serve_waiters();
            }
        });
        let mut permit = semaphore.enqueue(None).unwrap();
        other.join().unwrap();
        assert!(permit.try_recv().is_ok());
        assert_eq!(semaphore.in_use(), 2);
    });
}

#[test]
fn permits_never_exceed_the_capacity() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        let acquire = |semaphore: Arc<Semaphore>| {
            move || {
                if semaphore.try_acquire() {
                    assert_eq!(semaphore.in_use(), 1);
                    semaphore.release();
                }
            }
        };
        let other = thread::spawn(acquire(semaphore.clone()));
        acquire(semaphore.clone())();
        other.join().unwrap();
        assert_eq!(semaphore.in_use(), 0);
    });
}

#[test]
fn cancelled_wait_does_not_keep_a_permit() {
    loom::model(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        assert!(semaphore.try_acquire());
        let (mut first, mut second) = (semaphore.enqueue(None).unwrap(), semaphore.enqueue(None).unwrap());
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
        assert_eq!(semaphore.in_use(), 1);
    });
}
