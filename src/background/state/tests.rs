//! Compares random histories with a model: a list of tasks in the order of their admission, and one
//! of those with work in the order of their submission.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Step {
    Reserve { is_nested: bool, awaits_response: bool, sequence: Option<u64> },
    Join(usize, u64),
    EndResponse(usize),
    Skip(usize),
    Enqueue(usize),
    Dispatch,
    Start(usize),
    Cancel(usize),
    Finish(usize, Completion),
    Close,
    Halt,
}

fn step() -> impl Strategy<Value = Step> {
    let task = 0..6_usize;
    let completion = prop_oneof![
        Just(Completion::Refused),
        Just(Completion::Cancelled),
        Just(Completion::TimedOut),
        Just(Completion::Failed),
        Just(Completion::Lost),
        Just(Completion::Completed),
    ];
    prop_oneof![
        16 => (any::<bool>(), any::<bool>(), sequence()).prop_map(|(is_nested, awaits_response, sequence)| {
            Step::Reserve { is_nested, awaits_response, sequence }
        }),
        1 => (task.clone(), 0..2_u64).prop_map(|(task, key)| Step::Join(task, key)),
        2 => task.clone().prop_map(Step::EndResponse),
        1 => task.clone().prop_map(Step::Skip),
        24 => task.clone().prop_map(Step::Enqueue),
        8 => Just(Step::Dispatch),
        8 => task.clone().prop_map(Step::Start),
        6 => task.clone().prop_map(Step::Cancel),
        8 => (task, completion).prop_map(|(task, completion)| Step::Finish(task, completion)),
        1 => Just(Step::Close),
        1 => Just(Step::Halt),
    ]
}

/// Few keys, so that sequences are long.
fn sequence() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![2 => Just(None), 5 => (0..2_u64).prop_map(Some)]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    AwaitingResponse,
    Reserved,
    Queued,
    Dispatched { cancelled: bool },
    Running,
    Complete,
}

const MAX_TASKS: usize = 6;
const MAX_AWAITING: usize = 3;
const MAX_RUNNING: usize = 3;

fn new_state() -> State<u64, u64> {
    State::new(Limits { max_tasks: MAX_TASKS, max_awaiting_response: MAX_AWAITING, max_running: MAX_RUNNING })
}

/// Returns the number of queued tasks that wait for nothing but a run permit.
fn runnable(tasks: &[Model], queue: &[u64], sequences: &[Option<u64>]) -> usize {
    let of = |id: &u64| sequences[*id as usize];
    let is_head = |position: usize, key| {
        let is_running = tasks.iter().zip(sequences).any(|(task, sequence)| {
            *sequence == Some(key) && matches!(task, Model::Dispatched { .. } | Model::Running)
        });
        !is_running && !queue[..position].iter().any(|id| of(id) == Some(key))
    };
    queue.iter().enumerate().filter(|(position, id)| of(id).is_none_or(|key| is_head(*position, key))).count()
}

proptest! {
    #[test]
    fn every_task_and_permit_is_released_exactly_once(steps in proptest::collection::vec(step(), 0..80)) {
        let mut now = Instant::now();
        let mut state = new_state();
        let mut tasks: Vec<Model> = Vec::new();
        // The times at which the tasks were reserved, then queued, then started.
        let mut since: Vec<Instant> = Vec::new();
        let mut queue: Vec<u64> = Vec::new();
        let mut sequences: Vec<Option<u64>> = Vec::new();
        // For each sequence, the numbers of submitted work in the order in which it was handed out.
        let mut started: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut submitted: Vec<u64> = Vec::new();
        let (mut closed, mut halted) = (false, false);
        let mut expected_totals = BackgroundStats::default();
        for step in steps {
            now += Duration::from_secs(1);
            let count = |tasks: &[Model], model| tasks.iter().filter(|task| **task == model).count();
            let incomplete = |tasks: &[Model]| tasks.len() - count(tasks, Model::Complete);
            let permits = |tasks: &[Model]| {
                tasks.iter().filter(|task| matches!(task, Model::Dispatched { .. } | Model::Running)).count()
            };
            let has_permit = |task: &Model| matches!(task, Model::Dispatched { .. } | Model::Running);
            let members = |tasks: &[Model], sequences: &[Option<u64>], key| {
                let incomplete = tasks.iter().zip(sequences).filter(|(task, _)| **task != Model::Complete);
                incomplete.filter(|(_, sequence)| **sequence == Some(key)).count()
            };
            // The oldest queued task that no other one of its sequence is before or running.
            let next = |tasks: &[Model], queue: &[u64], sequences: &[Option<u64>]| {
                let mut busy: Vec<u64> = tasks.iter().zip(sequences).filter(|(task, _)| has_permit(task))
                    .filter_map(|(_, sequence)| *sequence).collect();
                queue.iter().copied().find(|id| match sequences[*id as usize] {
                    Some(key) if busy.contains(&key) => false,
                    sequence => {
                        busy.extend(sequence);
                        true
                    }
                })
            };
            let was_ready = next(&tasks, &queue, &sequences).is_some();
            // Prefer recent tasks, because old ones are usually complete.
            let pick = |from_end: usize| tasks.len().checked_sub(from_end + 1);
            match step {
                Step::Reserve { is_nested, awaits_response, sequence } => {
                    let awaiting = count(&tasks, Model::AwaitingResponse);
                    let expected = if halted || closed && !is_nested {
                        Err(SubmitError::CLOSED)
                    } else if incomplete(&tasks) - awaiting >= MAX_TASKS {
                        Err(SubmitError::FULL)
                    } else if awaits_response && awaiting == MAX_AWAITING {
                        Err(SubmitError::TOO_MANY_AWAITING)
                    } else {
                        let left = MAX_TASKS - (incomplete(&tasks) - awaiting);
                        let left = if awaits_response { left.min(MAX_AWAITING - awaiting) } else { left };
                        let is_full = sequence.is_some_and(|key| members(&tasks, &sequences, key) >= left);
                        if is_full { Err(SubmitError::SEQUENCE_FULL) } else { Ok(()) }
                    };
                    let id = tasks.len() as u64;
                    let admit = Admit { is_nested, awaits_response, sequence: sequence.map(SequenceKey::of_hash) };
                    prop_assert_eq!(state.reserve(id, id, admit, now), expected);
                    match expected {
                        Ok(()) => {
                            tasks.push(if awaits_response { Model::AwaitingResponse } else { Model::Reserved });
                            since.push(now);
                            sequences.push(sequence);
                        }
                        Err(_) => expected_totals.rejected += 1,
                    }
                }
                Step::Join(task, key) => if let Some(task) = pick(task) {
                    let is_reserved = matches!(tasks[task], Model::AwaitingResponse | Model::Reserved);
                    let previous = std::mem::replace(&mut tasks[task], Model::Complete);
                    let awaiting = count(&tasks, Model::AwaitingResponse);
                    let left = MAX_TASKS.saturating_sub(incomplete(&tasks) - awaiting);
                    let members = members(&tasks, &sequences, key);
                    let is_full = match previous {
                        Model::AwaitingResponse => left > 0 && members >= left.min(MAX_AWAITING - awaiting),
                        Model::Reserved => left > 0 && members >= left,
                        _ => false,
                    };
                    let expected = if is_full { Err(SubmitError::SEQUENCE_FULL) } else { Ok(()) };
                    prop_assert_eq!(state.join(task as u64, SequenceKey::of_hash(key)), expected);
                    expected_totals.rejected += u64::from(is_full);
                    if !is_full {
                        tasks[task] = previous;
                    }
                    if is_reserved && !is_full {
                        sequences[task] = Some(key);
                    }
                },
                Step::EndResponse(task) => if let Some(task) = pick(task) {
                    state.end_response(task as u64);
                    if tasks[task] == Model::AwaitingResponse {
                        tasks[task] = Model::Reserved;
                    }
                },
                Step::Enqueue(task) => if let Some(task) = pick(task) {
                    let is_reserved = matches!(tasks[task], Model::AwaitingResponse | Model::Reserved);
                    prop_assert_eq!(state.enqueue(task as u64, task as u64, now).is_ok(), is_reserved);
                    if is_reserved {
                        (tasks[task], since[task]) = (Model::Queued, now);
                        queue.push(task as u64);
                        submitted.push(task as u64);
                    }
                },
                Step::Dispatch => {
                    let free = permits(&tasks) < MAX_RUNNING;
                    let expected = next(&tasks, &queue, &sequences).filter(|_| free);
                    prop_assert_eq!(state.dispatch(), expected);
                    if let Some(id) = expected {
                        queue.retain(|queued| *queued != id);
                        tasks[id as usize] = Model::Dispatched { cancelled: false };
                        if let Some(key) = sequences[id as usize] {
                            let number = submitted.iter().position(|submitted| *submitted == id).unwrap_or_default();
                            started.entry(key).or_default().push(number);
                        }
                    }
                }
                Step::Start(task) => if let Some(task) = pick(task) {
                    let starts = tasks[task] == Model::Dispatched { cancelled: false };
                    let queued_at = starts.then_some(since[task]);
                    prop_assert_eq!(state.start(task as u64, now), queued_at, "the time since which it was queued");
                    if starts {
                        (tasks[task], since[task]) = (Model::Running, now);
                    }
                },
                Step::Finish(task, completion) => if let Some(task) = pick(task) {
                    // Only a run permit or a completed task can be finished.
                    if matches!(tasks[task], Model::Dispatched { .. } | Model::Running | Model::Complete) {
                        state.finish(task as u64, completion);
                        if tasks[task] != Model::Complete {
                            *match completion {
                                Completion::Completed => &mut expected_totals.completed,
                                Completion::Cancelled => &mut expected_totals.cancelled,
                                _ => &mut expected_totals.failed,
                            } += 1;
                        }
                        tasks[task] = Model::Complete;
                    }
                },
                Step::Skip(task) => if let Some(task) = pick(task) {
                    let is_reserved = matches!(tasks[task], Model::AwaitingResponse | Model::Reserved);
                    prop_assert_eq!(state.skip(task as u64), is_reserved);
                    if is_reserved {
                        tasks[task] = Model::Complete;
                        expected_totals.skipped += 1;
                    }
                },
                Step::Cancel(task) => if let Some(task) = pick(task) {
                    match (state.cancel(task as u64), tasks[task]) {
                        (Cancel::Complete, Model::Complete) => {}
                        (Cancel::Abort(header), Model::Dispatched { .. }) => {
                            prop_assert_eq!(header, task as u64);
                            tasks[task] = Model::Dispatched { cancelled: true };
                        }
                        (Cancel::Abort(header), Model::Running) => prop_assert_eq!(header, task as u64),
                        (Cancel::Removed { work }, previous @ (Model::AwaitingResponse | Model::Reserved | Model::Queued)) => {
                            prop_assert_eq!(work, (previous == Model::Queued).then_some(task as u64));
                            queue.retain(|id| *id != task as u64);
                            tasks[task] = Model::Complete;
                            expected_totals.cancelled += 1;
                        }
                        (cancel, previous) => prop_assert!(false, "{cancel:?} of a task in state {previous:?}"),
                    }
                },
                Step::Close => {
                    state.close();
                    closed = true;
                }
                Step::Halt => {
                    let Halt { queued, dispatched, running } = state.halt();
                    prop_assert_eq!(&queued, &std::mem::take(&mut queue));
                    for (id, task) in tasks.iter_mut().enumerate() {
                        let id = id as u64;
                        prop_assert_eq!(dispatched.contains(&id), matches!(task, Model::Dispatched { .. }));
                        let started_at = running.iter().find(|(header, _)| *header == id).map(|(_, started_at)| *started_at);
                        prop_assert_eq!(started_at, (*task == Model::Running).then_some(since[id as usize]));
                        if !matches!(task, Model::Running | Model::Complete) {
                            *task = Model::Complete;
                            expected_totals.cancelled += 1;
                        }
                    }
                    (closed, halted) = (true, true);
                }
            }
            for key in 0..2 {
                let heads = tasks.iter().zip(&sequences).filter(|(task, sequence)| {
                    has_permit(task) && **sequence == Some(key)
                });
                prop_assert!(heads.count() <= 1, "two tasks of a sequence overlap");
                prop_assert!(started.get(&key).is_none_or(|numbers| numbers.is_sorted()), "out of order: {started:?}");
            }
            // Only these two steps are followed by a dispatch.
            let is_ready = next(&tasks, &queue, &sequences).is_some();
            prop_assert!(was_ready || !is_ready || matches!(step, Step::Enqueue(_) | Step::Finish(..)));
            let running = permits(&tasks);
            prop_assert!(running <= MAX_RUNNING);
            let in_sequence = queue.len() - runnable(&tasks, &queue, &sequences);
            let stats = BackgroundStats {
                awaiting_response: count(&tasks, Model::AwaitingResponse),
                reserved: count(&tasks, Model::Reserved),
                running,
                in_sequence,
                queued: queue.len() - in_sequence,
                ..expected_totals
            };
            prop_assert_eq!(state.stats(), stats);
            prop_assert_eq!(state.is_idle(), incomplete(&tasks) == 0);
            prop_assert_eq!(state.is_closed(), closed);
        }
    }
}
