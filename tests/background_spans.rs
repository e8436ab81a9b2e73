//! Spans and events of background tasks. The first subscriber that sees a callsite decides for the
//! whole process whether the callsite is enabled, so these tests have their own binary.
#![allow(clippy::unwrap_used)]

use std::{sync::mpsc, time::Duration};

use tower_offload::Background;
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

/// Returns the names of the current spans, innermost first.
fn spans() -> Vec<&'static str> {
    tracing::dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>().unwrap();
        let current = dispatch.current_span();
        let span = registry.span(current.id().unwrap()).unwrap();
        span.scope().map(|span| span.name()).collect()
    })
}

#[tokio::test]
async fn each_task_has_a_span_within_the_span_of_its_submission() {
    let _subscriber =
        tracing::subscriber::set_default(Registry::default().with(tracing_subscriber::layer::Identity::new()));
    let background = Background::default();
    let (sender, receiver) = mpsc::channel();
    let (blocking, other) = (sender.clone(), sender);
    tracing::info_span!("request").in_scope(|| {
        background.task("blocking").spawn_blocking(move || blocking.send(spans()).unwrap()).unwrap();
        background
            .task("async")
            .spawn(async move {
                tokio::task::yield_now().await;
                other.send(spans()).unwrap();
            })
            .unwrap();
    });
    background.shutdown(Duration::from_secs(60)).await;
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [["background_task", "request"]; 2]);
}

/// Sends the level of each event.
struct Levels(mpsc::Sender<tracing::Level>);

impl<S: tracing::Subscriber> Layer<S> for Levels {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        self.0.send(*event.metadata().level()).unwrap();
    }
}

#[tokio::test]
async fn a_failure_is_one_event_with_or_without_a_handler() {
    let (sender, levels) = mpsc::channel();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(Levels(sender)));
    let background = Background::default();
    background.spawn_blocking(|| ()).unwrap();
    background.spawn(async {}).unwrap();
    assert!(background.shutdown(Duration::from_secs(60)).await.is_clean());
    assert_eq!(levels.try_iter().count(), 0);

    for builder in [Background::builder(), Background::builder().on_failure(|_| ())] {
        let background = builder.build();
        background.spawn_blocking(|| Err("no")).unwrap();
        background.shutdown(Duration::from_secs(60)).await;
        assert_eq!(levels.try_iter().collect::<Vec<_>>(), [tracing::Level::ERROR]);
    }
}

#[tokio::test]
async fn a_poll_that_blocks_the_runtime_is_an_event() {
    let (sender, levels) = mpsc::channel();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(Levels(sender)));
    let background = Background::builder().blocking_threshold(Duration::ZERO).build();
    background.task("on the runtime").on_runtime().spawn(async {}).unwrap();
    background.shutdown(Duration::from_secs(60)).await;
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [tracing::Level::WARN]);
}

/// Holds a task still between its start and its first instruction, until it has timed out.
struct HoldUntil(std::sync::Mutex<mpsc::Receiver<()>>);

impl<S: tracing::Subscriber> Layer<S> for HoldUntil {
    fn on_new_span(&self, _: &tracing::span::Attributes<'_>, _: &tracing::span::Id, _: Context<'_, S>) {
        self.0.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap();
    }
}

#[tokio::test]
async fn a_task_that_times_out_before_its_code_begins_never_runs() {
    for is_async in [false, true] {
        let (sender, failures) = mpsc::channel();
        let (proceed, proceeds) = mpsc::channel();
        let hold = HoldUntil(std::sync::Mutex::new(proceeds));
        let _subscriber = tracing::subscriber::set_default(Registry::default().with(hold));
        let background = Background::builder().on_failure(move |failure| {
            sender.send((failure.is_timeout(), failure.is_still_running())).unwrap();
            proceed.send(()).unwrap();
        });
        let background = background.build();
        let (completed, completions) = mpsc::channel();
        let reservation = background.reserve("late").unwrap().timeout(Duration::from_millis(1));
        let reservation = reservation.on_completion(move |completion| completed.send(completion).unwrap());
        let (run, ran) = mpsc::channel::<()>();
        if is_async {
            reservation.spawn(async move { run.send(()).unwrap() });
        } else {
            reservation.spawn_blocking(move || run.send(()).unwrap());
        }
        background.shutdown(Duration::from_secs(60)).await;
        assert!(ran.recv().is_err(), "it ran");
        assert_eq!(failures.try_iter().collect::<Vec<_>>(), [(true, false)]);
        assert_eq!(completions.try_iter().collect::<Vec<_>>(), [tower_offload::background::Completion::TimedOut]);
        assert_eq!((background.stats().failed, background.stats().running), (1, 0));
    }
}

/// Sends the names of the fields that events and spans record, without `message`.
struct Fields(mpsc::Sender<Vec<&'static str>>);

impl<S: tracing::Subscriber> Layer<S> for Fields {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Recorded::default();
        event.record(&mut fields);
        self.0.send(fields.0).unwrap();
    }

    fn on_new_span(&self, span: &tracing::span::Attributes<'_>, _: &tracing::span::Id, _: Context<'_, S>) {
        let mut fields = Recorded::default();
        span.record(&mut fields);
        self.0.send(fields.0).unwrap();
    }
}

#[derive(Default)]
struct Recorded(Vec<&'static str>);

impl tracing::field::Visit for Recorded {
    fn record_debug(&mut self, field: &tracing::field::Field, _: &dyn std::fmt::Debug) {
        if field.name() != "message" {
            self.0.push(field.name());
        }
    }
}

#[tokio::test]
async fn a_task_without_a_name_has_no_field_for_it() {
    let (sender, fields) = mpsc::channel();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(Fields(sender)));
    let background = Background::default();
    for (task, expected) in [(background.task("mail"), ["id", "name"].as_slice()), (background.task(""), &["id"])] {
        task.spawn_blocking(|| Err("no")).unwrap();
        // A span and an event.
        for _ in 0..2 {
            assert_eq!(fields.recv_timeout(Duration::from_secs(60)).unwrap(), expected);
        }
    }
}
