use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use loom::thread;

use super::{Crew, Hand, Limits, Priority, QueuePolicy, Step, Turn, Waits};

impl Waits for u32 {
    fn since(&self) -> tokio::time::Instant {
        tokio::time::Instant::now()
    }
}

fn crew(min: usize, max: usize, reserved: usize) -> Arc<Crew<u32>> {
    Arc::new(Crew::new(Limits { min, max, reserved }, QueuePolicy::Fifo, false))
}

/// What a worker does: runs jobs, and starts the threads it is asked to start.
fn work(
    crew: &Arc<Crew<u32>>,
    mut hand: Hand<u32>,
    keep_alive: Option<Duration>,
    run: &Arc<dyn Fn(u32) + Send + Sync>,
) {
    loop {
        let Turn { job, spawn, .. } = match crew.step(&mut hand, keep_alive != Some(Duration::ZERO)) {
            Step::End => return,
            Step::Run(turn) => turn,
            Step::Sleep if crew.sleep(&mut hand, keep_alive) => continue,
            Step::Sleep => return,
        };
        if let Some(role) = spawn {
            let (crew, run) = (crew.clone(), run.clone());
            thread::spawn(move || work(&crew, Hand::coming(role), keep_alive, &run));
        }
        run(job);
    }
}

/// `resumed` says which of the jobs 1 and 2 go past the inbox.
fn jobs_pushed_from_two_threads_all_run_once(resumed: fn(u32) -> bool) {
    loom::model(move || {
        let crew = crew(0, 1, 0);
        let ran = Arc::new(AtomicU32::new(0));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let ran = ran.clone();
            move |job| drop(ran.fetch_add(job, Ordering::SeqCst))
        });
        // What `Workers::schedule` does: push, and be the thread if one is asked for.
        let push = |job: u32| {
            let (crew, run) = (crew.clone(), run.clone());
            move || {
                if let Some(role) = crew.push(job, Priority::Normal, resumed(job)) {
                    work(&crew, Hand::coming(role), Some(Duration::ZERO), &run);
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

#[test]
fn jobs_pushed_from_two_threads_all_run_once_though_no_thread_stays() {
    jobs_pushed_from_two_threads_all_run_once(|job| job == 2);
}

#[test]
fn new_jobs_pushed_from_two_threads_all_run_once_though_no_thread_stays() {
    jobs_pushed_from_two_threads_all_run_once(|_| false);
}

/// Nobody closes the crew before the jobs are done: a wake that is lost is a deadlock, and loom reports it.
fn jobs_are_run_though_nothing_else_wakes_the_threads(threads: usize, jobs: u32) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let crew = crew(threads, threads, 0);
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
            assert!(crew.push(job, Priority::Normal, job % 2 == 0).is_none());
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
        let crew = crew(1, 1, 0);
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
        let spawn = crew.push(5, Priority::Normal, true);
        worker.join().unwrap();
        if let Some(role) = spawn {
            work(&crew, Hand::coming(role), None, &run);
        }
        assert_eq!(ran.load(Ordering::SeqCst), 5);
    });
}

/// The only thread blocks in job 1 until job 2, a release call, has run: a wake or a spawn that is lost is a deadlock.
/// Whatever the only thread is doing when the release call comes.
#[test]
fn a_release_call_is_run_though_the_only_thread_waits_for_it() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let crew = crew(1, 1, 1);
        assert!(crew.hire());
        let released = Arc::new(loom::sync::Notify::new());
        let ran = Arc::new(AtomicU32::new(0));
        let run: Arc<dyn Fn(u32) + Send + Sync> = Arc::new({
            let (released, ran) = (released.clone(), ran.clone());
            move |job| {
                match job {
                    1 => released.wait(),
                    _ => released.notify(),
                }
                ran.fetch_add(job, Ordering::SeqCst);
            }
        });
        let worker = {
            let (crew, run) = (crew.clone(), run.clone());
            thread::spawn(move || work(&crew, Hand::hired(), None, &run))
        };
        assert!(crew.push(1, Priority::Normal, false).is_none());
        let reserved = crew.push(2, Priority::Release, false);
        let reserved = reserved.map(|role| {
            let (crew, run) = (crew.clone(), run.clone());
            thread::spawn(move || work(&crew, Hand::coming(role), Some(Duration::ZERO), &run))
        });
        if let Some(reserved) = reserved {
            reserved.join().unwrap();
        }
        crew.close();
        worker.join().unwrap();
        assert_eq!((ran.load(Ordering::SeqCst), crew.threads()), (3, 0));
    });
}
