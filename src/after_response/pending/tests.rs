use proptest::prelude::*;

use super::Pending;

type Tasks = Pending<u32, u32>;

fn taken(pending: &mut Tasks) -> Option<(Vec<u32>, Vec<u32>)> {
    pending.take().map(|(hooks, tasks)| (hooks.collect(), tasks))
}

#[test]
fn d3_hooks_come_newest_first_and_tasks_oldest_first() {
    let mut pending = Tasks::default();
    (1..=3).for_each(|number| pending.push_hook(number));
    (1..=3).for_each(|number| pending.push_task(number));
    assert!(pending.begin_driving());
    assert_eq!(taken(&mut pending), Some((vec![3, 2, 1], vec![1, 2, 3])));
}

#[test]
fn whoever_drives_sees_what_is_registered_meanwhile() {
    let mut pending = Tasks::default();
    pending.push_hook(1);
    assert!(pending.begin_driving());
    assert_eq!(taken(&mut pending), Some((vec![1], vec![])));
    pending.push_task(2);
    assert!(!pending.begin_driving(), "somebody does");
    assert_eq!(taken(&mut pending), Some((vec![], vec![2])));
    assert_eq!(taken(&mut pending), None);
    assert!(pending.begin_driving());
}

#[test]
fn after_a_stop_nothing_starts_and_what_was_ready_is_given_back() {
    let mut pending = Tasks::default();
    (1..=3).for_each(|task| assert_eq!(pending.push_ready(task, 1), None));
    assert!(pending.begin_dispatching());
    assert_eq!(pending.next(), Some(1));
    assert_eq!(pending.over(true), [(2, 1), (3, 1)]);
    assert_eq!(pending.next(), None);
    assert_eq!(pending.push_ready(4, 1), Some(4));
}

#[test]
fn d13_a_name_finds_every_task_that_has_it() {
    let mut pending = Tasks::default();
    for (name, id) in [("mail", 1), ("index", 2), ("mail", 3)] {
        pending.push_name(name.into(), id);
    }
    pending.push_task(1);
    pending.push_task(2);
    assert_eq!(pending.push_ready(3, 1), None);
    assert_eq!(pending.withdraw("other", |task| u64::from(*task)), (vec![], vec![]));
    assert_eq!(pending.withdraw("mail", |task| u64::from(*task)), (vec![1, 3], vec![1, 3]));
    assert_eq!(pending.withdraw("mail", |task| u64::from(*task)), (vec![], vec![]));
    assert_eq!(pending.next(), None);
    assert_eq!(taken(&mut pending), Some((vec![], vec![2])));
}

#[test]
fn a_task_that_started_is_named_until_it_is_over() {
    let mut pending = Tasks::default();
    pending.push_name("mail".into(), 1);
    assert_eq!(pending.withdraw("mail", |task| u64::from(*task)), (vec![1], vec![]));
    pending.forget(1);
    assert_eq!(pending.withdraw("mail", |task| u64::from(*task)), (vec![], vec![]));
}

#[derive(Debug, Clone)]
enum Step {
    Over,
    Push(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![Just(Step::Over), (1..4_usize).prop_map(Step::Push)];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    /// D1, D2: in order, and each with no more beside it than it allows.
    #[test]
    fn tasks_start_in_order_and_with_no_more_beside_them_than_they_allow(steps in steps()) {
        let mut pending = Tasks::default();
        let (mut pushed, mut started, mut running) = (Vec::new(), Vec::new(), 0);
        for step in steps {
            match step {
                Step::Push(concurrent) => {
                    pushed.push(concurrent);
                    prop_assert_eq!(pending.push_ready(pushed.len() as u32 - 1, concurrent), None);
                }
                Step::Over if running > 0 => {
                    running -= 1;
                    prop_assert!(pending.over(false).is_empty());
                }
                Step::Over => {}
            }
            prop_assert!(pending.begin_dispatching());
            while let Some(task) = pending.next() {
                running += 1;
                prop_assert!(running <= pushed[task as usize]);
                started.push(task);
            }
            let waiting = pushed.get(started.len());
            prop_assert!(waiting.is_none_or(|concurrent| running >= *concurrent), "one waits that may start");
        }
        prop_assert!(started.iter().copied().eq(0..started.len() as u32));
    }
}
