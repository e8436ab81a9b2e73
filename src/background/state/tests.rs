//! Random histories against a model that is as dull as can be: a list of tasks.

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Step {
    Begin(usize),
    Cancel(usize),
    Close,
    Dispatch,
    End(usize, bool),
    Enqueue(usize),
    Halt,
    Reserve { inside: bool },
    Skip(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let task = 0..12_usize;
    prop_oneof![
        6 => task.clone().prop_map(Step::Begin),
        2 => task.clone().prop_map(Step::Cancel),
        1 => Just(Step::Close),
        6 => Just(Step::Dispatch),
        4 => (task.clone(), any::<bool>()).prop_map(|(task, well)| Step::End(task, well)),
        6 => task.clone().prop_map(Step::Enqueue),
        1 => Just(Step::Halt),
        8 => any::<bool>().prop_map(|inside| Step::Reserve { inside }),
        1 => task.prop_map(Step::Skip),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Reserved,
    Queued,
    Dispatched { cancelled: bool },
    Running,
    Over,
}

const CAPACITY: usize = 4;
const MAX_RUNNING: usize = 2;

proptest! {
    #[test]
    fn places_and_permits_are_never_lost_nor_doubled(steps in proptest::collection::vec(step(), 0..80)) {
        let now = Instant::now();
        let mut state = State::<u64, u64>::new(CAPACITY, MAX_RUNNING);
        let mut tasks: Vec<Is> = Vec::new();
        let mut order: Vec<u64> = Vec::new(); // of those in the queue
        let (mut closed, mut halted, mut rejected, mut over) = (false, false, 0, 0);
        for step in steps {
            let alive = |tasks: &[Is]| tasks.iter().filter(|is| **is != Is::Over).count();
            let permits = |tasks: &[Is]| {
                tasks.iter().filter(|is| matches!(is, Is::Dispatched { .. } | Is::Running)).count()
            };
            // A task near the end of the list, if there is one.
            let pick = |from_end: usize| tasks.len().checked_sub(from_end + 1);
            match step {
                Step::Reserve { inside } => {
                    let expected = if halted || closed && !inside {
                        Err(Kind::Closed)
                    } else if alive(&tasks) == CAPACITY {
                        Err(Kind::Full)
                    } else {
                        Ok(())
                    };
                    let id = tasks.len() as u64;
                    prop_assert_eq!(state.reserve(id, id, inside, now), expected);
                    match expected {
                        Ok(()) => tasks.push(Is::Reserved),
                        Err(_) => rejected += 1,
                    }
                }
                Step::Enqueue(task) => if let Some(task) = pick(task) {
                    let takes = tasks[task] == Is::Reserved;
                    prop_assert_eq!(state.enqueue(task as u64, task as u64, now).is_ok(), takes);
                    if takes {
                        tasks[task] = Is::Queued;
                        order.push(task as u64);
                    }
                },
                Step::Dispatch => {
                    let free = permits(&tasks) < MAX_RUNNING;
                    let expected = (free && !order.is_empty()).then(|| order.remove(0));
                    prop_assert_eq!(state.dispatch(), expected);
                    if let Some(id) = expected {
                        tasks[id as usize] = Is::Dispatched { cancelled: false };
                    }
                }
                Step::Begin(task) => if let Some(task) = pick(task) {
                    let begins = tasks[task] == Is::Dispatched { cancelled: false };
                    prop_assert_eq!(state.begin(task as u64, now).is_some(), begins);
                    if begins {
                        tasks[task] = Is::Running;
                    }
                },
                Step::End(task, well) => if let Some(task) = pick(task) {
                    // What has no permit is not ended by anybody.
                    if matches!(tasks[task], Is::Dispatched { .. } | Is::Running | Is::Over) {
                        over += u64::from(tasks[task] != Is::Over);
                        tasks[task] = Is::Over;
                        let idle = state.end(task as u64, if well { Ended::Completed } else { Ended::Failed });
                        prop_assert_eq!(idle, alive(&tasks) == 0);
                    }
                },
                Step::Skip(task) => if let Some(task) = pick(task) {
                    let skips = tasks[task] == Is::Reserved;
                    prop_assert_eq!(state.skip(task as u64), skips);
                    if skips {
                        tasks[task] = Is::Over;
                        over += 1;
                    }
                },
                Step::Cancel(task) => if let Some(task) = pick(task) {
                    match (state.cancel(task as u64), tasks[task]) {
                        (Met::Gone, Is::Over) => {}
                        (Met::Permitted(control), Is::Dispatched { .. }) => {
                            prop_assert_eq!(control, task as u64);
                            tasks[task] = Is::Dispatched { cancelled: true };
                        }
                        (Met::Permitted(control), Is::Running) => prop_assert_eq!(control, task as u64),
                        (Met::Pending { work, idle }, was @ (Is::Reserved | Is::Queued)) => {
                            prop_assert_eq!(work, (was == Is::Queued).then_some(task as u64));
                            order.retain(|id| *id != task as u64);
                            tasks[task] = Is::Over;
                            over += 1;
                            prop_assert_eq!(idle, alive(&tasks) == 0);
                        }
                        (met, was) => prop_assert!(false, "{met:?} of a task that is {was:?}"),
                    }
                },
                Step::Close => {
                    state.close();
                    closed = true;
                }
                Step::Halt => {
                    let Halt { dropped, unbegun, running } = state.halt();
                    prop_assert_eq!(&dropped, &std::mem::take(&mut order));
                    for (id, is) in tasks.iter_mut().enumerate() {
                        let id = id as u64;
                        prop_assert_eq!(unbegun.contains(&id), matches!(is, Is::Dispatched { .. }));
                        prop_assert_eq!(running.iter().any(|(control, _)| *control == id), *is == Is::Running);
                        if !matches!(is, Is::Running | Is::Over) {
                            *is = Is::Over;
                            over += 1;
                        }
                    }
                    (closed, halted) = (true, true);
                }
            }
            let stats = state.stats();
            prop_assert_eq!(stats.running, permits(&tasks));
            prop_assert!(stats.running <= MAX_RUNNING);
            prop_assert_eq!(stats.queued, order.len());
            prop_assert_eq!(stats.reserved, tasks.iter().filter(|is| **is == Is::Reserved).count());
            prop_assert_eq!(stats.rejected, rejected);
            prop_assert_eq!(stats.completed + stats.failed + stats.cancelled + stats.skipped, over);
            prop_assert_eq!(state.is_idle(), alive(&tasks) == 0);
            prop_assert_eq!(state.is_closed(), closed);
        }
    }
}
