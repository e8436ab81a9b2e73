//! Conditions of tasks, and tasks that outlive their clients and connections.

use std::time::Duration;

use tokio::sync::mpsc;
use tower_offload::{
    Background,
    after_response::{Delivery, End},
    background::BackgroundStats,
};

use crate::support::{ALL, Client, Latch, PLAIN_HTTP1, PLAIN_HTTP2, Setup, Stack, after_shutdown, on_each};

/// One task name per condition.
const CONDITIONS: [&str; 5] = ["plain", "always", "on_complete", "on_flushed", "when"];

/// Returns the tasks that ran after a request to `path`.
async fn tasks_after(
    stack: Stack,
    tracked: bool,
    path: &'static str,
    leave: bool,
) -> (Vec<&'static str>, BackgroundStats) {
    let background = Background::default();
    let (tx, mut ran) = mpsc::unbounded_channel();
    let setup = Setup::on(stack).background(&background).registers(move |after, _| {
        for name in CONDITIONS {
            let tx = tx.clone();
            let work = move || tx.send(name).unwrap();
            let task = after.task(name);
            let registered = match name {
                "always" => task.always().spawn_blocking(work),
                "on_complete" => task.on_complete().spawn_blocking(work),
                "on_flushed" => task.on_flushed().spawn_blocking(work),
                "when" => task.when(|outcome| outcome.end == End::Aborted).spawn_blocking(work),
                _ => task.spawn_blocking(work),
            };
            assert_eq!(registered.is_err(), name == "on_flushed" && !after.is_tracked());
            if let Err(rejected) = registered {
                assert!(rejected.is_untracked());
            }
        }
    });
    let mut site = if tracked { setup.start() } else { setup.untracked().start() };
    let mut client = Client::connect(&site).await;
    if leave {
        let started = client.start(path).await;
        let _kept = client.await_head(started).await;
        client.hang_up().await;
    } else {
        client.get(path).await;
    }
    site.record(path).await;
    let stats = after_shutdown(&background).await;
    let mut names = Vec::new();
    while let Ok(name) = ran.try_recv() {
        names.push(name);
    }
    (names, stats)
}

/// The default is success. Skipped tasks are counted.
#[tokio::test]
async fn conditions_select_the_tasks_that_run() {
    on_each(ALL, |stack| async move {
        for (path, leave, expected) in [
            ("/full/5", false, &["plain", "always", "on_complete", "on_flushed"] as &[_]),
            ("/status/302/0", false, &["plain", "always", "on_complete", "on_flushed"]),
            ("/status/404/5", false, &["always", "on_complete", "on_flushed"]),
            ("/status/500/5", false, &["always", "on_complete", "on_flushed"]),
            ("/hang/10", true, &["plain", "always", "when"]),
        ] {
            let (ran, stats) = tasks_after(stack, true, path, leave).await;
            assert_eq!(ran, expected, "{path}");
            assert_eq!((stats.completed, stats.skipped), (ran.len() as u64, (CONDITIONS.len() - ran.len()) as u64));
        }
    })
    .await;
}

#[tokio::test]
async fn on_flushed_is_rejected_on_an_untracked_connection() {
    on_each(ALL, |stack| async move {
        let (ran, _) = tasks_after(stack, false, "/full/5", false).await;
        assert_eq!(ran, ["plain", "always", "on_complete"]);
    })
    .await;
}

#[tokio::test]
async fn task_runs_to_its_end_after_a_disconnect() {
    on_each(ALL, |stack| async move {
        let (background, latch) = (Background::default(), Latch::new());
        let door = latch.door();
        let setup = Setup::on(stack).background(&background).registers(move |after, _| {
            let (sync, later) = (door.clone(), door.clone());
            after.task("sync").concurrent(2).spawn_blocking(move || sync.block()).unwrap();
            after.task("async").concurrent(2).spawn(later.pass()).unwrap();
        });
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        client.get("/full/5").await;
        latch.reached().await;
        client.hang_up().await;
        site.shut_down();
        site.over().await;
        latch.open();
        let stats = after_shutdown(&background).await;
        assert_eq!((stats.completed, stats.failed), (2, 0), "{stats:?}");
    })
    .await;
}

/// Each failure is reported once.
#[tokio::test]
async fn failed_or_late_task_does_not_affect_others() {
    on_each(&[Stack::AutoHttp1, Stack::AutoHttp2, Stack::AxumHttp1, Stack::AxumHttp2], |stack| async move {
        let (failed, mut failures) = mpsc::unbounded_channel();
        let background =
            Background::builder().on_failure(move |failure| failed.send(failure.to_string()).unwrap()).build();
        let (tx, mut ran) = mpsc::unbounded_channel();
        let setup = Setup::on(stack).background(&background).registers(move |after, _| {
            let (before, behind) = (tx.clone(), tx.clone());
            after.spawn_blocking(move || before.send("before").unwrap()).unwrap();
            after.task("fails").spawn_blocking(|| Err::<(), _>("no such address")).unwrap();
            after.task("late").timeout(Duration::from_millis(1)).spawn(std::future::pending::<()>()).unwrap();
            after.task("unwanted").spawn(std::future::pending::<()>()).unwrap();
            assert_eq!(after.cancel("unwanted"), 1);
            after.spawn_blocking(move || behind.send("behind").unwrap()).unwrap();
        });
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        client.get("/full/5").await;
        site.record("/full/5").await.is(End::Complete, Delivery::Flushed);
        let stats = after_shutdown(&background).await;
        assert_eq!((ran.recv().await, ran.recv().await), (Some("before"), Some("behind")));
        let messages = [failures.recv().await.unwrap(), failures.recv().await.unwrap()];
        assert!(messages[0].contains("no such address") && messages[1].contains("late"), "{messages:?}");
        assert!(failures.try_recv().is_err());
        assert_eq!((stats.completed, stats.failed, stats.cancelled), (2, 2, 1), "{stats:?}");
    })
    .await;
}

#[tokio::test]
async fn clones_of_a_handle_register_into_one_list() {
    on_each(&[PLAIN_HTTP1, PLAIN_HTTP2].concat(), |stack| async move {
        let background = Background::default();
        let (tx, mut ran) = mpsc::unbounded_channel();
        let setup = Setup::on(stack).background(&background).registers(move |after, _| {
            let other = after.clone();
            for (number, handle) in [after, &other, after, &other].into_iter().enumerate() {
                let tx = tx.clone();
                handle.spawn_blocking(move || tx.send(number).unwrap()).unwrap();
            }
        });
        let site = setup.start();
        Client::connect(&site).await.get("/full/5").await;
        for number in 0..4 {
            assert_eq!(ran.recv().await, Some(number));
        }
    })
    .await;
}

#[tokio::test]
async fn shutdown_waits_for_tasks_registered_by_tasks() {
    on_each(&[Stack::AutoHttp1, Stack::AutoHttp2], |stack| async move {
        let background = Background::default();
        let (tx, mut ran) = mpsc::unbounded_channel();
        let setup = Setup::on(stack).background(&background).registers(move |after, _| {
            nest(after.clone(), 5, tx.clone());
        });
        let mut site = setup.start();
        Client::connect(&site).await.get("/full/5").await;
        site.record("/full/5").await;
        for depth in (0..=5).rev() {
            assert_eq!(ran.recv().await, Some(depth));
        }
        assert_eq!(after_shutdown(&background).await.completed, 6);
    })
    .await;
}

fn nest(after: tower_offload::after_response::AfterResponse, depth: usize, tx: mpsc::UnboundedSender<usize>) {
    let inner = after.clone();
    let work = move || {
        tx.send(depth).unwrap();
        if depth > 0 {
            nest(inner, depth - 1, tx);
        }
    };
    after.spawn_blocking(work).unwrap();
}
