//! The life of one pool: callers of every kind, an event while calls run, and the end.

use std::{
    io::Write,
    process,
    sync::{
        Arc, Weak,
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::Notify,
    task::JoinSet,
};
use tower_offload::pool::Pool;

use tower_offload_tests::Random;

use crate::{
    alarm,
    callers::{Caller, Tickets},
    ledger::Ledger,
    stage::{self, KINDS, Kind, Surface},
    verdict::{self, Verdict},
};

/// Longer than any round takes on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Event while calls are in every state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The last handles of the pool are dropped by callers, during their last calls.
    Drop,
    /// Both runtimes are dropped, and their callers with them.
    EndOfRuntimes,
    /// Both of these, in random order.
    EndOfRuntimesAndDrop,
    Nothing,
    Shutdown,
}

const EVENTS: [Event; 6] = [
    Event::Drop,
    Event::EndOfRuntimes,
    Event::EndOfRuntimesAndDrop,
    Event::Nothing,
    Event::Nothing, // The only event after which all counters are exact.
    Event::Shutdown,
];

#[derive(Debug)]
pub(crate) struct Round {
    seed: u64,
    kind: Kind,
    event: Event,
    calls: usize,
    random: Random,
}

impl Round {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (kind, event) = (random.pick(&KINDS), random.pick(&EVENTS));
        Self { seed, kind, event, calls: 500 + random.below(3000), random }
    }

    /// Runs the round and returns the outcome of its calls.
    pub(crate) fn play(mut self) -> Verdict {
        let name = format!("seed {} ({:?}, {:?}, {} calls)", self.seed, self.kind, self.event, self.calls);
        let ledger = Arc::new(Ledger::default());
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let pool = stage::pool(self.kind, &mut self.random, &runtime);
        let (settled, watch) = watch(name.clone(), Arc::downgrade(&pool), ledger.clone());

        let tickets = Arc::new(Tickets::new(self.calls));
        let (alarm, alarms) = alarm::start();
        let random = self.random.split();
        let surface = Surface::new(pool.clone());
        let mut caller = Caller { surface, tickets: tickets.clone(), ledger: ledger.clone(), alarm, random };
        let mut threads = Vec::new();
        for _ in 0..2 {
            let caller = caller.again();
            threads.push(thread::spawn(move || pollster::block_on(caller.in_turn())));
        }
        let by_hand = caller.again();
        threads.push(thread::spawn(move || by_hand.by_hand()));
        let stop = Arc::new(Notify::new());
        threads.push(spawn_current_thread(caller.again(), stop.clone()));
        let mut tasks = JoinSet::new();
        for _ in 0..16 {
            tasks.spawn_on(caller.again().in_turn(), runtime.handle());
        }
        drop(caller);

        let pool = self.happen(pool, &tickets, runtime, tasks, &stop);
        for thread in threads {
            thread.join().unwrap();
        }
        alarms.join().unwrap(); // Exits once the last call is dropped.
        let stats = pool.map(|pool| verdict::settled_stats(&*pool));
        let verdict = verdict::of(&name, &ledger.entries(), stats);
        drop(settled);
        watch.join().unwrap();
        verdict
    }

    /// Causes the event. Returns the pool unless it is dropped.
    fn happen(
        &mut self,
        pool: Arc<dyn Pool>,
        tickets: &Tickets,
        runtime: Runtime,
        mut tasks: JoinSet<()>,
        stop: &Notify,
    ) -> Option<Arc<dyn Pool>> {
        let moment = self.calls / 2 + self.random.below(self.calls / 2);
        let pool = match self.event {
            Event::Drop | Event::EndOfRuntimesAndDrop => None,
            _ => Some(pool),
        };
        match self.event {
            Event::Drop | Event::Nothing => {
                runtime.block_on(async { while tasks.join_next().await.is_some() {} });
                return pool; // The runtime is dropped, possibly while its threads run calls.
            }
            _ => {}
        }
        while tickets.taken() < moment {
            thread::sleep(Duration::from_micros(200)); // leaves the cores to the callers
        }
        match &pool {
            Some(pool) if self.event == Event::Shutdown => {
                self.shut_down(&**pool);
                tickets.withdraw();
                runtime.block_on(async { while tasks.join_next().await.is_some() {} });
            }
            _ => {
                stop.notify_one();
                tasks.detach_all(); // The runtime drops them.
                if self.random.one_in(2) {
                    drop(runtime)
                } else {
                    runtime.shutdown_background()
                }
                tickets.withdraw();
            }
        }
        pool
    }

    /// Shuts the pool down: once, twice concurrently, or again after a cancelled shutdown.
    fn shut_down(&mut self, pool: &dyn Pool) {
        let timeout = Duration::from_micros(self.random.pick(&[0, 50, 1000, 20_000]));
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            match self.random.below(3) {
                0 => drop(futures_util::poll!(pool.shutdown(timeout))),
                1 => drop(tokio::join!(pool.shutdown(timeout), pool.shutdown(timeout / 2))),
                _ => {}
            }
            pool.shutdown(timeout).await;
        });
    }
}

/// Starts a single-threaded runtime that runs until its tasks have ended or `stop` is notified.
fn spawn_current_thread(mut caller: Caller, stop: Arc<Notify>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..16 {
                tasks.spawn(caller.again().in_turn());
            }
            drop(caller);
            tokio::select! {
                () = async { while tasks.join_next().await.is_some() {} } => {}
                () = stop.notified() => tasks.detach_all(),
            }
        });
    })
}

/// Exits the process with a report unless the sender is dropped in time.
fn watch(
    name: String,
    pool: Weak<dyn Pool>,
    ledger: Arc<Ledger>,
) -> (std::sync::mpsc::Sender<()>, thread::JoinHandle<()>) {
    let (settled, end) = channel();
    let watch = thread::spawn(move || {
        if end.recv_timeout(TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            let entries = ledger.entries();
            let open = verdict::unsettled(&entries);
            let pool = pool.upgrade();
            // Written directly, because the test harness captures `eprintln`.
            let _ = writeln!(std::io::stderr(), "{name}: not settled\n{pool:#?}\n{open:#?}");
            process::exit(1);
        }
    });
    (settled, watch)
}
