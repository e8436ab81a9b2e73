//! Whatever is registered in whatever order: each hook is called once, each task runs once if its condition holds, else never.

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
    /// The client leaves.
    Drop,
    Hook,
    /// The connection asks for a frame.
    Poll,
    /// The handler responds, if it has not.
    Respond,
    Task {
        condition: Condition,
        is_async: bool,
        concurrent: usize,
    },
    /// The runtime has a turn.
    Turn,
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
        3 => Just(Move::Turn),
    ];
    proptest::collection::vec(one, 0..40)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![5 => (0..4_usize).prop_map(Step::Data), 1 => Just(Step::Error("disk"))];
    proptest::collection::vec(step, 0..4)
}

/// What the body and those who poll it make of the response.
#[derive(Debug, Default)]
struct Model {
    has_responded: bool,
    polls: usize,
    left: bool,
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

/// How often each that was registered ran.
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
        task.run(work)
    };
    handle.unwrap();
}

async fn play(moves: Vec<Move>, steps: Vec<Step>, status: u16) -> Result<(), TestCaseError> {
    let (background, runs, told) = (on_no_thread(), Runs::default(), Arc::new(Mutex::new(Vec::<Outcome>::new())));
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
    for (number, step) in moves.into_iter().chain([Move::Turn, Move::Drop]).enumerate() {
        match step {
            Move::Hook => {
                let (count, told) = (counting(&runs, number), told.clone());
                after.hook(move |outcome| {
                    count();
                    told.lock().unwrap().push(outcome.clone());
                });
                hooks += 1;
            }
            Move::Task { condition, is_async, concurrent } => {
                register(&after, condition, is_async, concurrent, counting(&runs, number));
                tasks.push((number, condition));
            }
            Move::Respond if call.is_some() => {
                respond.take().unwrap().send(()).unwrap();
                let response = call.take().unwrap().now_or_never().expect("it was let respond").unwrap();
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
                model.left = true;
            }
            Move::Turn => tokio::task::yield_now().await,
            Move::Respond => {}
        }
        prop_assert!(model.left || runs.lock().unwrap().is_empty(), "nothing runs before the end");
    }
    background.drain(crate::support::LONG).await;
    tokio::task::yield_now().await;
    let runs = std::mem::take(&mut *runs.lock().unwrap());
    let mut told = std::mem::take(&mut *told.lock().unwrap());
    prop_assert!(runs.values().all(|runs| *runs == 1), "{:?}", runs);
    prop_assert_eq!(told.len(), hooks);
    // It is the same whenever it is asked for; of a case without hooks, for the first time.
    told.push(crate::support::told(&after).await.unwrap());
    prop_assert!(told.windows(2).all(|two| (two[0].end, two[0].total) == (two[1].end, two[1].total)), "one outcome");
    let outcome = &told[0];
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
    fn hooks_are_called_once_and_tasks_run_once_if_they_are_wanted(
        moves in moves(),
        steps in steps(),
        status in prop_oneof![3 => Just(200_u16), 1 => Just(404)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(play(moves, steps, status))?;
    }
}
