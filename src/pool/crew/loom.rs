use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use loom::thread;

use super::{Crew, Hand, Taken};

/// What a worker does: runs jobs, and starts the threads it is asked to start.
fn work(crew: &Arc<Crew<u32>>, mut hand: Hand, keep_alive: Option<Duration>, run: &Arc<dyn Fn(u32) + Send + Sync>) {
    while let Some(Taken { item: job, spawn, .. }) = crew.next(&mut hand, keep_alive, || {}) {
        if spawn {
            let (crew, run) = (crew.clone(), run.clone());
            thread::spawn(move || work(&crew, Hand::coming(), keep_alive, &run));
        }
        run(job);
    }
}

#[test]
fn jobs_pushed_from_two_threads_all_run_once_though_no_thread_stays() {
    loom::model(|| {
        let crew = Arc::new(Crew::new(0, 1, false));
        let ran = Arc::new(AtomicU32::new(0));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let ran = ran.clone();
            move |job| drop(ran.fetch_add(job, Ordering::SeqCst))
        });
        // What `Workers::schedule` does: push, and be the thread if one is asked for.
        let push = |job: u32| {
            let (crew, run) = (crew.clone(), run.clone());
            move || {
                if crew.push(job, job == 2) {
                    work(&crew, Hand::coming(), Some(Duration::ZERO), &run);
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
    model.preemption_bound = Some(2);
    model.check(move || {
        let crew = Arc::new(Crew::new(threads, threads, false));
        let done = Arc::new(loom::sync::Notify::new());
        let left = Arc::new(AtomicU32::new(jobs));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let (done, left) = (done.clone(), left);
            move |job| {
                assert!(job < jobs);
                if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    done.notify();
                }
            }
        });
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                assert!(crew.hire());
                let (crew, run) = (crew.clone(), run.clone());
                thread::spawn(move || work(&crew, Hand::hired(), None, &run))
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

/// Idle stack, chained wake and the search, all in it.
#[test]
fn two_threads_share_two_jobs_and_a_wake_is_not_lost() {
    jobs_are_run_though_nothing_else_wakes_the_threads(2, 2);
}

#[test]
fn a_wake_after_the_close_gets_a_thread_again() {
    loom::model(|| {
        let crew = Arc::new(Crew::new(1, 1, false));
        assert!(crew.hire());
        let ran = Arc::new(AtomicU32::new(0));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let ran = ran.clone();
            move |job| drop(ran.fetch_add(job, Ordering::SeqCst))
        });
        let worker = {
            let (crew, run) = (crew.clone(), run.clone());
            thread::spawn(move || work(&crew, Hand::hired(), None, &run))
        };
        crew.close();
        let spawn = crew.push(5, true);
        worker.join().unwrap();
        if spawn {
            work(&crew, Hand::coming(), None, &run);
        }
        assert_eq!(ran.load(Ordering::SeqCst), 5);
    });
}
