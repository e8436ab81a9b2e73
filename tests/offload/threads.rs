//! Hooks and nice values of the threads of a pool.

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

/// Returns the builder of a pool whose threads exit as soon as they are idle.
fn short_lived(max_threads: usize) -> ThreadPoolBuilder {
    ThreadPool::builder().min_threads(0).max_threads(max_threads).keep_alive(Duration::from_millis(1))
}

#[tokio::test]
async fn hooks_run_once_on_each_thread() {
    let (started, stopped) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<String>>>::default());
    let (starts, stops) = (started.clone(), stopped.clone());
    let pool = short_lived(3)
        .name("hooked")
        .on_thread_start(|| unreachable!("replaced by the next hook"))
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
        // The three held threads have started. A thread of the previous round may still be about to
        // stop.
        eventually(|| started.lock().unwrap().len() == stopped.lock().unwrap().len() + 3).await;
        for held in held {
            held.release().await.unwrap();
        }
        eventually(|| pool.threads() == 0).await;
    }
    assert_eq!(soon(pool.run(|| (STARTED.get(), thread_name().starts_with("hooked-")))).await, Ok((true, true)));
    assert!(soon(pool.shutdown(Duration::from_secs(30))).await.is_empty());
    // Threads are numbered in order, but may start in any order.
    let sorted = |names: &Arc<Mutex<Vec<String>>>| {
        let mut names = names.lock().unwrap().clone();
        names.sort();
        names
    };
    eventually(|| sorted(&started) == sorted(&stopped)).await;
    let names = sorted(&started);
    assert!(names.len() >= 7 && names.iter().all(|name| name.starts_with("hooked-")), "{names:?}");
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "once for each thread: {names:?}");
}

#[tokio::test]
async fn panicking_hook_costs_no_thread_and_no_call() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload's drop");
        }
    }
    let called = Arc::new(AtomicUsize::new(0));
    let (on_start, on_stop) = (called.clone(), called.clone());
    let pool = short_lived(2)
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

/// A start hook may be slow, for example if it connects to a database.
#[tokio::test]
async fn slow_start_hook_does_not_delay_calls() {
    let (started, (release, released)) = (AtomicUsize::new(0), std::sync::mpsc::channel::<()>());
    let released = Mutex::new(released);
    let pool = ThreadPool::builder()
        .min_threads(0)
        .max_threads(4)
        .on_thread_start(move || {
            if started.fetch_add(1, SeqCst) >= 1 {
                let _ = released.lock().unwrap().recv(); // every thread except the first
            }
        })
        .build()
        .unwrap();
    let first = hold(&pool).await;
    let second = pool.run(|| 2); // starts a second thread, which blocks in the hook
    let third = pool.run(|| 3);
    first.release().await.unwrap();
    assert_eq!((soon(second).await, soon(third).await), (Ok(2), Ok(3)));
    assert_eq!(soon(pool.run(|| 4)).await, Ok(4));
    drop(release);
}

/// Tokio panics if the guards are not dropped in reverse order.
#[tokio::test]
async fn leaked_runtime_guard_costs_no_thread() {
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

#[test]
fn builder_with_hooks_is_clone_and_debug() {
    let builder = ThreadPool::builder().threads(1).on_thread_start(|| ()).niceness(3);
    let shown = format!("{:?}", builder.clone());
    assert!(shown.contains("start: true") && shown.contains("stop: false") && shown.contains("Some(3)"), "{shown}");
}

#[test]
fn niceness_out_of_range_is_a_configuration_error() {
    for niceness in [-21, 20, i32::MIN, i32::MAX] {
        let error = ThreadPool::builder().niceness(niceness).build().unwrap_err();
        assert!(error.is_configuration() && !error.is_permission() && !error.is_spawn());
        assert!(
            error.to_string().contains(&format!("nice value {niceness} is out of range: use -20 to 19")),
            "{error}"
        );
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeSet;

    use super::*;

    /// A thread that stays alive while idle must sleep, even if `keep_alive` is zero.
    #[tokio::test]
    async fn minimum_thread_sleeps_with_zero_keep_alive() {
        let alive = Arc::<Mutex<BTreeSet<i32>>>::default();
        let (starts, stops) = (alive.clone(), alive.clone());
        let pool = ThreadPool::builder()
            .min_threads(1)
            .max_threads(2)
            .keep_alive(Duration::ZERO)
            .on_thread_start(move || _ = starts.lock().unwrap().insert(unix_thread_id()))
            .on_thread_stop(move || _ = stops.lock().unwrap().remove(&unix_thread_id()))
            .build()
            .unwrap();
        let held = [hold(&pool).await, hold(&pool).await];
        for held in held {
            held.release().await.unwrap();
        }
        eventually(|| alive.lock().unwrap().len() == 1).await;
        let thread = *alive.lock().unwrap().first().unwrap();
        eventually(|| {
            let before = activity(thread);
            thread::sleep(Duration::from_millis(100)); // nothing tells that a thread keeps sleeping
            activity(thread) == before
        })
        .await;
        assert_eq!(soon(pool.run(|| 1)).await, Ok(1));
    }

    /// Returns the CPU time of a thread in ticks of 10 ms, and how often it was switched out.
    /// Neither changes while it sleeps.
    fn activity(thread: i32) -> (u64, u64) {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        let ticks = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
        let switches = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
        (ticks, switches.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum())
    }

    fn unix_thread_id() -> i32 {
        let link = std::fs::read_link("/proc/thread-self").unwrap();
        link.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }

    /// Returns the nice value of the calling thread: field 19 of proc_pid_stat(5). Field 2 is a
    /// name with any characters.
    fn nice_value() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    /// Returns a nice value that differs from this thread's and needs no privilege, unless the
    /// tests run at 19.
    fn nicer(steps: i32) -> i32 {
        (nice_value() + steps).min(19)
    }

    #[tokio::test]
    async fn only_threads_of_the_pool_have_the_nice_value() {
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
        assert_eq!(soon(pool.run(nice_value)).await, Ok(niceness), "a thread that started later");
        assert_eq!(*seen_by_hook.lock().unwrap(), [niceness; 3]);
        assert_eq!(nice_value(), before);
        assert_eq!(thread::spawn(nice_value).join().unwrap(), before);
        for held in held {
            held.release().await.unwrap();
        }
    }

    /// The result depends on the privileges of the test process.
    #[tokio::test]
    async fn privileged_niceness_is_set_or_a_build_error() {
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

    /// A thread inherits the nice value of the thread that starts it, and cannot lower it without a
    /// privilege.
    #[tokio::test]
    async fn thread_works_without_its_nice_value() {
        let nicest = ThreadPool::builder().threads(1).niceness(nicer(6)).build().unwrap();
        let grown = short_lived(2).niceness(nicer(3)).build().unwrap();
        eventually(|| grown.threads() == 0).await; // the thread that `build` started to test the nice value
        let by_nicest = grown.clone();
        let run = soon(nicest.run(move || by_nicest.run(nice_value))).await.unwrap();
        let value = soon(run).await.unwrap();
        assert!([nicer(3), nicer(6)].contains(&value), "{value}");
    }
}
