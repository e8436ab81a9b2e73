use std::collections::HashMap;

use proptest::prelude::*;

use super::{Hooks, Pending, TaskKey};

/// A task with its number in the order of registration.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Task {
    key: TaskKey,
    number: u64,
}

type TestPending = Pending<u32, Task>;

/// Registers a task. Its id is its number plus 100.
fn push(pending: &mut TestPending, name: &str, concurrent: usize) {
    let number = pending.tasks().next_number;
    pending.tasks().push(name.to_owned().into(), number + 100, concurrent, |key| Task { key, number });
}

/// Returns hooks of which the last number is the newest.
fn hooks(numbers: &[u32]) -> Hooks<u32> {
    let mut hooks = Hooks::default();
    numbers.iter().for_each(|number| hooks.push(*number));
    hooks
}

fn all_decided(_: &Task) -> bool {
    true
}

/// Selects every decided task below `bound`, and returns their numbers.
fn select(pending: &mut TestPending, bound: u64, is_decided: impl Fn(&Task) -> bool) -> Vec<u64> {
    let mut selected = Vec::new();
    while let Some((task, concurrent)) = pending.tasks().take_unselected(bound, &is_decided) {
        selected.push(task.number);
        let key = task.key.clone();
        assert_eq!(pending.tasks().select(&key, task, concurrent), None);
    }
    selected
}

fn numbers(tasks: impl IntoIterator<Item = Task>) -> Vec<u64> {
    tasks.into_iter().map(|task| task.number).collect()
}

#[test]
fn hooks_run_newest_first_and_tasks_oldest_first() {
    let mut pending = TestPending::default();
    (1..=3).for_each(|number| pending.push_hook(number));
    (1..=3).for_each(|_| push(&mut pending, "", 1));
    let (mut hooks, bound) = pending.begin_driving(all_decided).unwrap();
    assert_eq!((hooks.pop(), hooks.pop(), hooks.pop()), (Some(3), Some(2), Some(1)));
    assert_eq!(select(&mut pending, bound, all_decided), [0, 1, 2]);
}

#[test]
fn driver_sees_registrations_made_while_it_runs() {
    let mut pending = TestPending::default();
    pending.push_hook(1);
    assert_eq!(pending.begin_driving(all_decided), Some((hooks(&[1]), 0)));
    push(&mut pending, "", 1);
    assert_eq!(pending.begin_driving(all_decided), None, "it already runs");
    assert_eq!(select(&mut pending, 0, all_decided), [0_u64; 0], "later hooks run before it");
    assert_eq!(pending.take(all_decided), Some((hooks(&[]), 1)));
    assert_eq!(select(&mut pending, 1, all_decided), [0]);
    assert_eq!(pending.take(all_decided), None);
    pending.push_hook(2);
    assert_eq!(pending.begin_driving(all_decided), Some((hooks(&[2]), 0)));
}

#[test]
fn an_undecided_task_holds_back_itself_and_later_ones() {
    let mut pending = TestPending::default();
    (0..3).for_each(|_| push(&mut pending, "", 1));
    let is_decided = |task: &Task| task.number != 1;
    assert_eq!(pending.begin_driving(is_decided), Some((hooks(&[]), 3)));
    assert_eq!(select(&mut pending, 3, is_decided), [0]);
    assert_eq!(pending.take(is_decided), None);
    pending.push_hook(1);
    assert_eq!(pending.begin_driving(is_decided), Some((hooks(&[1]), 3)), "hooks do not wait");
    assert_eq!(select(&mut pending, 3, all_decided), [1, 2]);
}

#[test]
fn stop_returns_selected_tasks_and_starts_no_more() {
    let mut pending = TestPending::default();
    (0..4).for_each(|_| push(&mut pending, "", 1));
    select(&mut pending, 3, all_decided);
    assert!(pending.tasks().begin_dispatching());
    assert_eq!(pending.tasks().next_task().map(|task| task.number), Some(0));
    assert_eq!(numbers(pending.tasks().finish_task(true)), [1, 2]);
    assert_eq!(pending.tasks().next_task(), None);
    let (task, concurrent) = pending.tasks().take_unselected(4, all_decided).unwrap();
    let key = task.key.clone();
    assert_eq!(pending.tasks().select(&key, task.clone(), concurrent), Some(task));
}

#[test]
fn remove_by_name_finds_every_task_of_that_name() {
    let mut pending = TestPending::default();
    ["mail", "index", "mail", ""].into_iter().for_each(|name| push(&mut pending, name, 1));
    select(&mut pending, 1, all_decided);
    assert_eq!(pending.tasks().remove_by_name("other"), (vec![], vec![]));
    assert_eq!(pending.tasks().remove_by_name(""), (vec![], vec![]));
    let (ids, removed) = pending.tasks().remove_by_name("mail");
    assert_eq!((ids, numbers(removed)), (vec![100, 102], vec![0, 2]));
    assert_eq!(pending.tasks().remove_by_name("mail"), (vec![], vec![]));
    assert_eq!(pending.tasks().next_task(), None);
    assert_eq!(select(&mut pending, 4, all_decided), [1, 3]);
}

#[test]
fn running_task_keeps_its_name_until_it_ends() {
    let mut pending = TestPending::default();
    push(&mut pending, "mail", 1);
    select(&mut pending, 1, all_decided);
    let task = pending.tasks().next_task().unwrap();
    assert_eq!(pending.tasks().remove_by_name("mail"), (vec![100], vec![]));
    pending.tasks().unindex(&task.key);
    assert_eq!(pending.tasks().remove_by_name("mail"), (vec![], vec![]));
}

#[derive(Debug, Clone)]
enum Step {
    Push { name: &'static str, concurrent: usize },
    Decide(u64),
    Drive,
    Dispatch,
    Finish { stop: bool },
    Remove(&'static str),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = prop_oneof![Just(""), Just("a"), Just("b")];
    let step = prop_oneof![
        4 => (name.clone(), 1..4_usize).prop_map(|(name, concurrent)| Step::Push { name, concurrent }),
        4 => (0..20_u64).prop_map(Step::Decide),
        3 => Just(Step::Drive),
        3 => Just(Step::Dispatch),
        3 => prop::bool::weighted(0.1).prop_map(|stop| Step::Finish { stop }),
        1 => name.prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// Each task is started, removed or refused at most once, in order, within its limit; and at
    /// the end none is forgotten.
    #[test]
    fn tasks_start_in_order_within_their_limits(steps in steps()) {
        let mut pending = TestPending::default();
        let mut pushed: Vec<(&str, usize)> = Vec::new();
        let mut decided: Vec<u64> = Vec::new();
        // How each task ended that no longer waits, and the tasks that run, oldest first.
        let mut left: HashMap<u64, &str> = HashMap::new();
        let mut running: Vec<Task> = Vec::new();
        let (mut selected, mut stopped) = (0, false);
        for step in steps.into_iter().chain([Step::Drive, Step::Dispatch]) {
            match step {
                Step::Push { name, concurrent } => {
                    pushed.push((name, concurrent));
                    push(&mut pending, name, concurrent);
                }
                Step::Decide(number) => decided.push(number),
                Step::Drive => {
                    let is_decided = |task: &Task| decided.contains(&task.number);
                    let mut taken = pending.begin_driving(is_decided);
                    while let Some((_, bound)) = taken {
                        while let Some((task, concurrent)) = pending.tasks().take_unselected(bound, is_decided) {
                            prop_assert!(task.number >= selected);
                            selected = task.number + 1;
                            let key = task.key.clone();
                            if let Some(refused) = pending.tasks().select(&key, task, concurrent) {
                                prop_assert!(stopped);
                                pending.tasks().unindex(&key);
                                prop_assert_eq!(left.insert(refused.number, "refused"), None);
                            }
                        }
                        taken = pending.take(is_decided);
                    }
                    let next = (selected..pushed.len() as u64).find(|number| !left.contains_key(number));
                    prop_assert!(next.is_none_or(|number| !decided.contains(&number)), "{next:?} is forgotten");
                }
                Step::Dispatch => {
                    prop_assert!(pending.tasks().begin_dispatching());
                    while let Some(task) = pending.tasks().next_task() {
                        let number = task.number;
                        prop_assert!(number < selected && running.len() < pushed[number as usize].1);
                        prop_assert!((0..number).all(|earlier| left.contains_key(&earlier)), "out of order");
                        prop_assert_eq!(left.insert(number, "started"), None);
                        running.push(task);
                    }
                    let next = (0..selected).find(|number| !left.contains_key(number));
                    let is_blocked = |number: u64| running.len() >= pushed[number as usize].1;
                    prop_assert!(next.is_none_or(is_blocked), "{next:?} waits although it may start");
                }
                Step::Finish { stop } => if !running.is_empty() {
                    let task = running.remove(0);
                    pending.tasks().unindex(&task.key);
                    for removed in pending.tasks().finish_task(stop) {
                        prop_assert!(stop && removed.number < selected);
                        pending.tasks().unindex(&removed.key);
                        prop_assert_eq!(left.insert(removed.number, "stopped"), None);
                    }
                    stopped |= stop;
                },
                Step::Remove(name) => {
                    let is_named = |number: u64| !name.is_empty() && pushed[number as usize].0 == name;
                    let waiting: Vec<u64> = (0..pushed.len() as u64)
                        .filter(|number| is_named(*number) && !left.contains_key(number)).collect();
                    let runs = |number: u64| running.iter().any(|task| task.number == number);
                    let expected: Vec<u64> = (0..pushed.len() as u64)
                        .filter(|number| is_named(*number) && (waiting.contains(number) || runs(*number)))
                        .map(|number| number + 100).collect();
                    let (ids, removed) = pending.tasks().remove_by_name(name);
                    prop_assert_eq!(ids, expected);
                    let removed = numbers(removed);
                    prop_assert_eq!(&removed, &waiting);
                    left.extend(removed.into_iter().map(|number| (number, "removed")));
                }
            }
        }
    }
}
