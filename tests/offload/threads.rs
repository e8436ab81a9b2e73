//! What happens on a pool's threads around its work: hooks and the nice value.

use std::{
    cell::Cell,
    error::Error,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use tower_offload::{
    ThreadPool,
    pool::{Pool, ThreadPoolBuilder},
};

use crate::support::{eventually, hold, soon};

thread_local! {
    static STARTED: Cell<bool> = const { Cell::new(false) };
}

fn thread_name() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

/// No thread stays: each that is started ends when it has nothing to do.
fn fleeting(max_threads: usize) -> ThreadPoolBuilder {
    ThreadPool::builder().min_threads(0).max_threads(max_threads).keep_alive(Duration::from_millis(1))
}

#[tokio::test]
async fn hooks_run_once_on_each_thread_that_comes_and_goes() {
    let (started, stopped) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<String>>>::default());
    let (starts, stops) = (started.clone(), stopped.clone());
    let pool = fleeting(3)
        .name("hooked")
        .on_thread_start(|| unreachable!("replaced by the next"))
        .on_thread_start(move || {
            assert!(!STARTED.replace(true));
            starts.lock().unwrap().push(thread_name());
        })
        .on_thread_stop(move || {
            assert!(STARTED.get());
            stops.lock().unwrap().push(thread_name());
        })
        .build()
        .unwrap();
    for _ in 0..2 {
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(hold(&pool).await);
        }
        // Those that are held; one from before may still be about to stop.
        eventually(|| started.lock().unwrap().len() == stopped.lock().unwrap().len() + 3).await;
        for held in held {
            held.release().await.unwrap();
        }
        eventually(|| pool.threads() == 0).await;
    }
    assert_eq!(soon(pool.run(|| (STARTED.get(), thread_name().starts_with("hooked-")))).await, Ok((true, true)));
    assert!(soon(pool.shutdown(Duration::from_secs(30))).await.is_empty());
    // Numbers are given in order, but threads begin in any.
    let sorted = |names: &Arc<Mutex<Vec<String>>>| {
        let mut names = names.lock().unwrap().clone();
        names.sort();
        names
    };
    eventually(|| sorted(&started) == sorted(&stopped)).await;
    let names = sorted(&started);
    assert!(names.len() >= 7 && names.iter().all(|name| name.starts_with("hooked-")), "{names:?}");
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "once a thread: {names:?}");
}

#[tokio::test]
async fn a_hook_that_panics_costs_no_thread_and_no_call() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload's drop");
        }
    }
    let called = Arc::new(AtomicUsize::new(0));
    let (on_start, on_stop) = (called.clone(), called.clone());
    let pool = fleeting(2)
        .on_thread_start(move || {
            on_start.fetch_add(1, SeqCst);
            std::panic::panic_any(Bomb)
        })
        .on_thread_stop(move || {
            on_stop.fetch_add(1, SeqCst);
            panic!("the stop hook")
        })
        .build()
        .unwrap();
    for round in 0..3 {
        let held = (hold(&pool).await, hold(&pool).await);
        assert_eq!(pool.threads(), 2);
        held.0.release().await.unwrap();
        held.1.release().await.unwrap();
        eventually(|| pool.threads() == 0).await;
        assert_eq!(soon(pool.run(move || round)).await, Ok(round));
    }
    assert!(soon(pool.shutdown(Duration::from_secs(30))).await.is_empty());
    let calls = called.load(SeqCst);
    assert!(calls >= 9, "{calls}");
}

/// A hook that attaches a virtual machine, or connects to a database.
#[tokio::test]
async fn a_start_hook_that_takes_long_delays_no_call_that_another_thread_can_run() {
    let (started, (release, released)) = (AtomicUsize::new(0), std::sync::mpsc::channel::<()>());
    let released = Mutex::new(released);
    let pool = ThreadPool::builder()
        .min_threads(0)
        .max_threads(4)
        .on_thread_start(move || {
            if started.fetch_add(1, SeqCst) >= 1 {
                let _ = released.lock().unwrap().recv(); // all but the first
            }
        })
        .build()
        .unwrap();
    let first = hold(&pool).await;
    let second = pool.run(|| 2); // asks for a second thread, which is in the hook
    let third = pool.run(|| 3);
    first.release().await.unwrap();
    assert_eq!((soon(second).await, soon(third).await), (Ok(2), Ok(3)));
    assert_eq!(soon(pool.run(|| 4)).await, Ok(4));
    drop(release);
}

/// Tokio panics where the guards are dropped in another order than they were made.
#[tokio::test]
async fn a_call_that_leaks_the_guard_of_a_runtime_costs_the_pool_no_thread() {
    let other = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    for _ in 0..3 {
        let handle = other.handle().clone();
        let leaks = pool.run(move || std::mem::forget(handle.enter()));
        let _ = soon(AssertUnwindSafe(leaks).catch_unwind()).await;
        assert_eq!(soon(pool.run(|| 1)).await, Ok(1));
        let (held, queued) = (hold(&pool).await, pool.run(|| 2));
        held.release().await.unwrap();
        assert_eq!(soon(queued).await, Ok(2));
    }
    assert_eq!(pool.threads(), 1);
    other.shutdown_background();
}

/// One of those that stay, with no patience: it sleeps like any other.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_thread_that_stays_sleeps_whatever_the_keep_alive() {
    let pool = ThreadPool::builder().min_threads(1).max_threads(2).keep_alive(Duration::ZERO).build().unwrap();
    let stat = loop {
        let stat = pool.run(|| format!("/proc/self/task/{}/stat", unix_thread_id())).await.unwrap();
        eventually(|| pool.threads() == 1).await;
        if std::fs::exists(&stat).unwrap() {
            break stat; // the call may have been run by the one that does not stay
        }
    };
    // In ticks of 10 ms: all of user and system time. A thread that did not sleep would have some 30.
    let ticks = || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        let after_name: Vec<_> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
        after_name[12].parse::<u32>().unwrap() + after_name[13].parse::<u32>().unwrap()
    };
    let before = ticks();
    thread::sleep(Duration::from_millis(300)); // nothing tells that a thread goes on sleeping, but time
    assert!(ticks() - before < 15);
    assert_eq!(soon(pool.run(|| 1)).await, Ok(1));
}

#[cfg(target_os = "linux")]
fn unix_thread_id() -> i32 {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn a_builder_with_hooks_can_be_cloned_and_shown() {
    let builder = ThreadPool::builder().threads(1).on_thread_start(|| ()).niceness(3);
    let shown = format!("{:?}", builder.clone());
    assert!(shown.contains("start: true") && shown.contains("stop: false") && shown.contains("Some(3)"), "{shown}");
}

#[test]
fn a_nice_value_out_of_range_is_a_mistake_in_the_configuration() {
    for niceness in [-21, 20, i32::MIN, i32::MAX] {
        let error = ThreadPool::builder().niceness(niceness).build().unwrap_err();
        assert!(error.is_configuration() && !error.is_permission() && !error.is_spawn());
        assert!(error.to_string().contains(&format!("from -20 to 19: {niceness} is not")), "{error}");
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;

    /// Of the calling thread: field 19 of proc_pid_stat(5). The second one is a name, which may contain anything.
    fn nice_value() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    /// One that is neither this thread's nor needs a privilege, unless the tests themselves run at 19.
    fn nicer(steps: i32) -> i32 {
        (nice_value() + steps).min(19)
    }

    #[tokio::test]
    async fn every_thread_of_the_pool_has_the_nice_value_and_no_other_thread() {
        let (before, niceness) = (nice_value(), nicer(3));
        let seen_by_hook = Arc::new(Mutex::new(Vec::new()));
        let seen = seen_by_hook.clone();
        let pool = ThreadPool::builder()
            .min_threads(1)
            .max_threads(3)
            .niceness(niceness)
            .on_thread_start(move || seen.lock().unwrap().push(nice_value()))
            .build()
            .unwrap();
        let held = [hold(&pool).await, hold(&pool).await];
        assert_eq!(soon(pool.run(nice_value)).await, Ok(niceness), "of a thread started later");
        assert_eq!(*seen_by_hook.lock().unwrap(), [niceness; 3]);
        assert_eq!(nice_value(), before);
        assert_eq!(thread::spawn(nice_value).join().unwrap(), before);
        for held in held {
            held.release().await.unwrap();
        }
    }

    /// With the privilege the threads have it, without it the builder says so.
    #[tokio::test]
    async fn a_nice_value_that_needs_a_privilege_is_had_or_is_an_error_of_the_builder() {
        match ThreadPool::builder().threads(2).niceness(-5).build() {
            Ok(pool) => assert_eq!(soon(pool.run(nice_value)).await, Ok(-5)),
            Err(error) => {
                assert!(error.is_permission() && !error.is_configuration() && !error.is_spawn());
                assert!(error.to_string().contains("nice value -5"), "{error}");
                let source = error.source().unwrap().downcast_ref::<std::io::Error>().unwrap();
                assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
            }
        }
    }

    /// A thread that nicer work starts is as nice as that, and may not go back without the privilege.
    #[tokio::test]
    async fn a_thread_that_does_not_get_its_nice_value_later_works_all_the_same() {
        let nicest = ThreadPool::builder().threads(1).niceness(nicer(6)).build().unwrap();
        let grown = fleeting(2).niceness(nicer(3)).build().unwrap();
        eventually(|| grown.threads() == 0).await; // the one that was started to see that it can be had
        let by_nicest = grown.clone();
        let run = soon(nicest.run(move || by_nicest.run(nice_value))).await.unwrap();
        let value = soon(run).await.unwrap();
        assert!([nicer(3), nicer(6)].contains(&value), "{value}");
    }
}
