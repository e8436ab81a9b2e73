//! Random registrations: each hook runs once, and each task runs once if its condition holds,
//! otherwise never.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use futures_util::FutureExt;
use http::{Request, Response};
use proptest::prelude::*;
use tower::{Layer, Service, service_fn};
use tower_offload::{
    AfterResponse,
    after_response::{End, Outcome},
};

use crate::support::{Script, Step, frame, handle, layer, on_no_thread};

#[derive(Debug, Clone)]
enum Move {
    /// The client closes the connection.
    Drop,
    Hook,
    /// The connection polls for a frame.
    Poll,
    /// The handler responds, unless it did before.
    Respond,
    Task {
        condition: Condition,
        is_async: bool,
        concurrent: usize,
    },
    /// The runtime is polled.
    Yield,
}

#[derive(Debug, Clone, Copy)]
enum Condition {
    Always,
    Complete,
    Default,
    Panic,
    When(End),
}

impl Condition {
    fn holds(self, outcome: &Outcome) -> bool {
        match self {
            Self::Always => true,
            Self::Complete => outcome.end == End::Complete,
            Self::Default => outcome.status.is_some_and(|status| status.as_u16() < 400),
            Self::Panic => false,
            Self::When(end) => outcome.end == end,
        }
    }
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let end = prop_oneof![Just(End::Aborted), Just(End::NoResponse), Just(End::BodyError)];
    let condition = prop_oneof![
        1 => Just(Condition::Always),
        1 => Just(Condition::Complete),
        3 => Just(Condition::Default),
        1 => Just(Condition::Panic),
        1 => end.prop_map(Condition::When),
    ];
    let task = (condition, any::<bool>(), 1..3_usize).prop_map(|(condition, is_async, concurrent)| Move::Task {
        condition,
        is_async,
        concurrent,
    });
    let one = prop_oneof![
        1 => Just(Move::Drop),
        3 => Just(Move::Hook),
        4 => Just(Move::Poll),
        3 => Just(Move::Respond),
        5 => task,
        3 => Just(Move::Yield),
    ];
    proptest::collection::vec(one, 0..40)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![5 => (0..4_usize).prop_map(Step::Data), 1 => Just(Step::Error("disk"))];
    proptest::collection::vec(step, 0..4)
}

/// Predicts the end of the response.
#[derive(Debug, Default)]
struct Model {
    has_responded: bool,
    polls: usize,
    has_left: bool,
}

impl Model {
    fn end(&self, steps: &[Step]) -> End {
        let polled = &steps[..steps.len().min(self.polls)];
        if !self.has_responded || self.polls == 0 {
            End::NoResponse
        } else if polled.iter().any(|step| matches!(step, Step::Error(_))) {
            End::BodyError
        } else if self.polls > steps.len() {
            End::Complete
        } else {
            End::Aborted
        }
    }
}

/// Number of runs of each hook and task.
type Runs = Arc<Mutex<BTreeMap<usize, usize>>>;

fn counting(runs: &Runs, number: usize) -> impl FnOnce() + Send + 'static {
    let runs = runs.clone();
    move || *runs.lock().unwrap().entry(number).or_default() += 1
}

fn register(
    after: &AfterResponse,
    condition: Condition,
    is_async: bool,
    concurrent: usize,
    work: impl FnOnce() + Send + 'static,
) {
    let task = after.task("").concurrent(concurrent);
    let task = match condition {
        Condition::Always => task.always(),
        Condition::Complete => task.on_complete(),
        Condition::Default => task,
        Condition::Panic => task.when(|_| panic!("in the condition")),
        Condition::When(end) => task.when(move |outcome| outcome.end == end),
    };
    let handle = if is_async {
        task.spawn(async move {
            tokio::task::yield_now().await;
            work();
        })
    } else {
        task.spawn_blocking(work)
    };
    handle.unwrap();
}

async fn play(moves: Vec<Move>, steps: Vec<Step>, status: u16) -> Result<(), TestCaseError> {
    let (background, runs, outcomes) = (on_no_thread(), Runs::default(), Arc::new(Mutex::new(Vec::<Outcome>::new())));
    let (respond, responds) = tokio::sync::oneshot::channel::<()>();
    let (mut respond, mut model) = (Some(respond), Model::default());
    let mut parts = Some((responds, Script::new(steps.clone())));
    let mut kept = None;
    let mut service = layer(&background).layer(service_fn(|request: Request<()>| {
        kept = Some(handle(&request));
        let (responds, body) = parts.take().unwrap();
        async move {
            let _ = responds.await;
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        }
    }));
    let mut call = Some(Box::pin(service.call(Request::new(()))));
    drop(service);
    let after = kept.unwrap();
    let (mut body, mut hooks, mut tasks) = (None, 0, Vec::new());
    for (number, step) in moves.into_iter().chain([Move::Yield, Move::Drop]).enumerate() {
        match step {
            Move::Hook => {
                let (count, outcomes) = (counting(&runs, number), outcomes.clone());
                after.hook(move |outcome| {
                    count();
                    outcomes.lock().unwrap().push(outcome.clone());
                });
                hooks += 1;
            }
            Move::Task { condition, is_async, concurrent } => {
                register(&after, condition, is_async, concurrent, counting(&runs, number));
                tasks.push((number, condition));
            }
            Move::Respond if call.is_some() => {
                respond.take().unwrap().send(()).unwrap();
                let response = call.take().unwrap().now_or_never().expect("the handler was released").unwrap();
                body = Some(response.into_body());
                model.has_responded = true;
            }
            Move::Poll => {
                if let Some(body) = &mut body {
                    drop(frame(body));
                    model.polls += 1;
                }
            }
            Move::Drop => {
                drop((call.take(), body.take()));
                model.has_left = true;
            }
            Move::Yield => tokio::task::yield_now().await,
            Move::Respond => {}
        }
        prop_assert!(model.has_left || runs.lock().unwrap().is_empty(), "nothing runs before the response ends");
    }
    background.shutdown(crate::support::LONG).await;
    tokio::task::yield_now().await;
    let runs = std::mem::take(&mut *runs.lock().unwrap());
    let mut outcomes = std::mem::take(&mut *outcomes.lock().unwrap());
    prop_assert!(runs.values().all(|runs| *runs == 1), "{:?}", runs);
    prop_assert_eq!(outcomes.len(), hooks);
    // A hook that is registered now gets the same outcome. It is the only one in a case without
    // hooks.
    outcomes.push(crate::support::outcome_of(&after).await.unwrap());
    prop_assert!(
        outcomes.windows(2).all(|two| (two[0].end, two[0].total) == (two[1].end, two[1].total)),
        "one outcome"
    );
    let outcome = &outcomes[0];
    prop_assert_eq!(outcome.end, model.end(&steps));
    prop_assert_eq!(outcome.status.map(|status| status.as_u16()), model.has_responded.then_some(status));
    let mut skipped = 0;
    for (number, condition) in tasks {
        let holds = condition.holds(outcome);
        prop_assert_eq!(runs.contains_key(&number), holds, "task {} {:?}", number, condition);
        skipped += u64::from(!holds);
    }
    prop_assert_eq!(background.stats().skipped, skipped);
    Ok(())
}

proptest! {
    #[test]
    fn hooks_run_once_and_tasks_run_once_if_selected(
        moves in moves(),
        steps in steps(),
        status in prop_oneof![3 => Just(200_u16), 1 => Just(404)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(play(moves, steps, status))?;
    }
}
