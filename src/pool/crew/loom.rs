use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use loom::thread;

use super::Crew;

/// Every job runs exactly once, and every thread ends: loom reports a thread that waits for ever as a deadlock.
#[test]
fn jobs_pushed_from_two_threads_all_run_once_and_a_closed_crew_ends() {
    loom::model(|| {
        let crew = Arc::new(Crew::new(0, 1));
        let ran = Arc::new(AtomicU32::new(0));
        // What `Workers::schedule` does: push, and run a thread if asked for one.
        let push = |item: u32| {
            let (crew, ran) = (crew.clone(), ran.clone());
            move || {
                if crew.push(item, item == 2) {
                    while let Some(item) = crew.next(Some(Duration::ZERO)) {
                        ran.fetch_add(item, Ordering::SeqCst);
                    }
                }
            }
        };
        let other = thread::spawn(push(2));
        push(1)();
        other.join().unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 3);
        assert_eq!(crew.threads(), 0);
    });
}

/// Nobody closes the crew before the jobs are done: a wake that is lost is a deadlock, and loom reports it.
fn jobs_are_run_though_nothing_else_wakes_the_threads(threads: usize, jobs: u32) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let crew = Arc::new(Crew::new(threads, threads));
        let done = Arc::new(loom::sync::Notify::new());
        let left = Arc::new(AtomicU32::new(jobs));
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                assert!(crew.hire());
                let (crew, done, left) = (crew.clone(), done.clone(), left.clone());
                thread::spawn(move || {
                    while let Some(job) = crew.next(None) {
                        assert!(job < jobs);
                        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                            done.notify();
                        }
                    }
                })
            })
            .collect();
        for job in 0..jobs {
            assert!(!crew.push(job, job % 2 == 1));
        }
        done.wait();
        crew.close();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(crew.threads(), 0);
    });
}

#[test]
fn a_job_pushed_while_the_only_thread_goes_to_sleep_is_run() {
    jobs_are_run_though_nothing_else_wakes_the_threads(1, 2);
}

#[test]
fn two_threads_share_two_jobs_and_a_wake_is_not_lost() {
    jobs_are_run_though_nothing_else_wakes_the_threads(2, 2);
}

#[test]
fn a_wake_after_the_close_gets_a_thread_again() {
    loom::model(|| {
        let crew = Arc::new(Crew::new(1, 1));
        assert!(crew.hire());
        let worker = {
            let crew = crew.clone();
            thread::spawn(move || {
                let mut ran = 0;
                while let Some(item) = crew.next(None) {
                    ran += item;
                }
                ran
            })
        };
        crew.close();
        let spawn = crew.push(5, true);
        let mut ran = worker.join().unwrap();
        if spawn {
            while let Some(item) = crew.next(None) {
                ran += item;
            }
        }
        assert_eq!(ran, 5);
    });
}
