//! Tasks whose work runs in a process, which is really killed.

use std::{
    fs,
    io::{Read, Write},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};
use tower_offload::{
    Background,
    process::{self, Context, ProcessPool, Work},
};
use tower_offload_tasks::{Failure, Progress, Reason, TaskId, TaskState, Tasks, TrackBuilder};
use tower_offload_tests::{PATIENCE, eventually};

use super::support::{background, ended, in_memory};

/// The `main` of worker processes. In an ordinary test run it returns at once.
#[test]
fn process_worker() {
    process::init::<InProcess>();
}

#[derive(Debug, Serialize, Deserialize)]
enum InProcess {
    Fail,
    Abort,
    /// Report progress, send the process id to the port, and wait until the connection is closed.
    Hold(u16),
}

impl Work for InProcess {
    const KIND: &'static str = "in-process";
    type Output = u32;
    type Error = String;

    fn run(self, context: &Context) -> Result<u32, String> {
        match self {
            Self::Fail => Err("no paper".to_owned()),
            Self::Abort => std::process::abort(),
            Self::Hold(port) => {
                context.progress(0.5, "halfway");
                let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
                connection.write_all(&std::process::id().to_le_bytes()).unwrap();
                let _ = connection.read(&mut [0]);
                Ok(std::process::id())
            }
        }
    }
}

fn pool() -> ProcessPool {
    let arguments = ["in_process::process_worker", "--exact", "--nocapture"];
    ProcessPool::builder().processes(1).grace(Duration::from_millis(20)).arguments(arguments).build().unwrap()
}

async fn spawn(track: TrackBuilder<'_>, background: &Background, pool: &ProcessPool, work: InProcess) -> TaskId {
    let pool = pool.clone();
    let work = |progress: Progress| async move {
        let run = pool.run(work).on_progress(move |value, message| progress.set(value, message));
        Ok::<_, Failure>(run.await?)
    };
    track.spawn(background, work).await.unwrap().id()
}

/// Starts a task, and returns it with the connection that holds its work, and its process.
async fn hold(tasks: &Tasks, background: &Background, pool: &ProcessPool) -> (TaskId, TcpStream, u32) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let id = spawn(tasks.track("held"), background, pool, InProcess::Hold(port)).await;
    let entered = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let process_id = connection.read_u32_le().await.unwrap();
        (id, connection, process_id)
    };
    tokio::time::timeout(PATIENCE, entered).await.expect("the work does not start")
}

fn is_alive(process_id: u32) -> bool {
    // A process that has not been reaped remains as a zombie.
    fs::read_to_string(format!("/proc/{process_id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn task_has_the_progress_and_the_result_of_its_process() {
    let (tasks, background, pool) = (in_memory(), background(), pool());
    let (id, held, process_id) = hold(&tasks, &background, &pool).await;
    let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
    while subscription.record().progress.is_none() {
        subscription.changed().await.unwrap().expect("the task is running");
    }
    assert_eq!(subscription.record().message.as_deref(), Some("halfway"));
    drop(held);
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.progress), (TaskState::Succeeded, Some(0.5)));
    assert_eq!(ended.result.unwrap().parse::<u32>().unwrap(), process_id);
}

#[tokio::test]
async fn cancelled_task_ends_its_process() {
    let (tasks, background, pool) = (in_memory(), background(), pool());
    let (id, _held, process_id) = hold(&tasks, &background, &pool).await;
    tasks.cancel(id).await.unwrap();
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    eventually("the process is killed", async || !is_alive(process_id)).await;
}

#[tokio::test]
async fn failure_of_a_task_says_how_its_work_ended() {
    let (tasks, background, pool) = (in_memory(), background(), pool());
    let expected =
        [(InProcess::Fail, "error", "no paper"), (InProcess::Abort, "crash", "the process was killed by signal 6")];
    for (work, class, message) in expected {
        let id = spawn(tasks.track("fails"), &background, &pool, work).await;
        let failure = ended(&tasks, id).await.failure.unwrap();
        assert_eq!((&*failure.class, &*failure.message), (class, message));
    }
    let _ = pool.shutdown(Duration::ZERO).await;
    let id = spawn(tasks.track("fails"), &background, &pool, InProcess::Fail).await;
    assert_eq!(ended(&tasks, id).await.failure.unwrap().class, "refused");
}
