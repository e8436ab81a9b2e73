use proptest::prelude::*;

use super::Pending;

type Tasks = Pending<u32, u32>;

fn taken(pending: &mut Tasks) -> Option<(Vec<u32>, Vec<u32>)> {
    pending.take().map(|(hooks, tasks)| (hooks.collect(), tasks))
}

#[test]
fn hooks_run_newest_first_and_tasks_oldest_first() {
    let mut pending = Tasks::default();
    (1..=3).for_each(|number| pending.push_hook(number));
    (1..=3).for_each(|number| pending.push_task(number));
    assert!(pending.begin_driving());
    assert_eq!(taken(&mut pending), Some((vec![3, 2, 1], vec![1, 2, 3])));
}

#[test]
fn driver_sees_registrations_made_while_it_runs() {
    let mut pending = Tasks::default();
    pending.push_hook(1);
    assert!(pending.begin_driving());
    assert_eq!(taken(&mut pending), Some((vec![1], vec![])));
    pending.push_task(2);
    assert!(!pending.begin_driving(), "it already runs");
    assert_eq!(taken(&mut pending), Some((vec![], vec![2])));
    assert_eq!(taken(&mut pending), None);
    assert!(pending.begin_driving());
}

#[test]
fn stop_returns_ready_tasks_and_starts_no_more() {
    let mut pending = Tasks::default();
    (1..=3).for_each(|task| assert_eq!(pending.push_ready(task, 1), None));
    assert!(pending.begin_dispatching());
    assert_eq!(pending.next_task(), Some(1));
    assert_eq!(pending.finish_task(true), [(2, 1), (3, 1)]);
    assert_eq!(pending.next_task(), None);
    assert_eq!(pending.push_ready(4, 1), Some(4));
}

#[test]
fn remove_by_name_finds_every_task_of_that_name() {
    let mut pending = Tasks::default();
    for (name, id) in [("mail", 1), ("index", 2), ("mail", 3)] {
        pending.push_name(name.into(), id);
    }
    pending.push_task(1);
    pending.push_task(2);
    assert_eq!(pending.push_ready(3, 1), None);
    assert_eq!(pending.remove_by_name("other", |task| u64::from(*task)), (vec![], vec![]));
    assert_eq!(pending.remove_by_name("mail", |task| u64::from(*task)), (vec![1, 3], vec![1, 3]));
    assert_eq!(pending.remove_by_name("mail", |task| u64::from(*task)), (vec![], vec![]));
    assert_eq!(pending.next_task(), None);
    assert_eq!(taken(&mut pending), Some((vec![], vec![2])));
}

#[test]
fn running_task_keeps_its_name_until_it_ends() {
    let mut pending = Tasks::default();
    pending.push_name("mail".into(), 1);
    assert_eq!(pending.remove_by_name("mail", |task| u64::from(*task)), (vec![1], vec![]));
    pending.unindex(1);
    assert_eq!(pending.remove_by_name("mail", |task| u64::from(*task)), (vec![], vec![]));
}

#[derive(Debug, Clone)]
enum Step {
    Finish,
    Push(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![Just(Step::Finish), (1..4_usize).prop_map(Step::Push)];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn tasks_start_in_order_within_their_concurrency_limits(steps in steps()) {
        let mut pending = Tasks::default();
        let (mut pushed, mut started, mut running) = (Vec::new(), Vec::new(), 0);
        for step in steps {
            match step {
                Step::Push(concurrent) => {
                    pushed.push(concurrent);
                    prop_assert_eq!(pending.push_ready(pushed.len() as u32 - 1, concurrent), None);
                }
                Step::Finish if running > 0 => {
                    running -= 1;
                    prop_assert!(pending.finish_task(false).is_empty());
                }
                Step::Finish => {}
            }
            prop_assert!(pending.begin_dispatching());
            while let Some(task) = pending.next_task() {
                running += 1;
                prop_assert!(running <= pushed[task as usize]);
                started.push(task);
            }
            let waiting = pushed.get(started.len());
            prop_assert!(waiting.is_none_or(|concurrent| running >= *concurrent), "a task waits although it may start");
        }
        prop_assert!(started.iter().copied().eq(0..started.len() as u32));
    }
}
