//! Progress of work, and callers that decide about the start and wait for the end.

use std::{
    io::Read,
    net::TcpStream,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tower_offload::{
    CallError,
    pool::CallOptions,
    process::{Context, KilledBy, RunError, Work},
};

use crate::support::{Do, Meeting, builder, eventually, is_reaped, pid_of};

/// Work that reports progress.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Report twice, connect to the port, and wait until the connection is closed.
    AndHold(u16),
    /// Report this number of steps, and return at once.
    Steps(u32),
    /// Report a message of this length.
    Long(usize),
}

impl Work for Report {
    const KIND: &'static str = "report";
    type Output = ();
    type Error = String;

    fn run(self, context: &Context) -> Result<(), String> {
        match self {
            Self::AndHold(port) => {
                context.progress(0.25, "begun");
                context.progress(0.5, "halfway");
                let mut connection = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
                let _ = connection.read(&mut [0]);
            }
            Self::Steps(steps) => {
                (1..=steps).for_each(|step| context.progress(f64::from(step) / f64::from(steps), &step.to_string()));
            }
            Self::Long(len) => context.progress(f64::NAN, &"x".repeat(len)),
        }
        Ok(())
    }
}

/// Reports that have arrived.
#[derive(Clone, Default)]
struct Reports(Arc<Mutex<Vec<(f64, String)>>>);

impl Reports {
    fn callback(&self) -> impl Fn(f64, &str) + Send + Sync + 'static {
        let reports = self.clone();
        move |value, message| reports.0.lock().unwrap().push((value, message.to_owned()))
    }

    fn last(&self) -> Option<(f64, String)> {
        self.0.lock().unwrap().last().cloned()
    }
}

#[tokio::test]
async fn latest_progress_arrives_while_the_work_runs() {
    let (pool, meeting, reports) = (builder().build().unwrap(), Meeting::new(), Reports::default());
    let job = pool.run(Report::AndHold(meeting.port())).on_progress(reports.callback());
    let held = meeting.entered().await;
    eventually("the latest report", || reports.last() == Some((0.5, "halfway".to_owned()))).await;
    drop(held);
    assert_eq!(job.await, Ok(()));
}

#[tokio::test]
async fn callback_that_is_set_late_gets_the_latest_progress() {
    let (pool, meeting, reports) = (builder().build().unwrap(), Meeting::new(), Reports::default());
    let job = pool.run(Report::AndHold(meeting.port()));
    let held = meeting.entered().await;
    let job = job.on_progress(reports.callback());
    eventually("the latest report", || reports.last() == Some((0.5, "halfway".to_owned()))).await;
    drop(held);
    assert_eq!(job.await, Ok(()));
}

#[tokio::test]
async fn frequent_reports_are_combined_and_the_last_precedes_the_result() {
    const STEPS: u32 = 100_000;
    let (pool, reports) = (builder().build().unwrap(), Reports::default());
    assert_eq!(pool.run(Report::Steps(STEPS)).on_progress(reports.callback()).await, Ok(()));
    assert_eq!(reports.last(), Some((1.0, STEPS.to_string())));
    let reports = reports.0.lock().unwrap();
    assert!(reports.is_sorted_by(|one, other| one.0 < other.0), "{reports:?}");
    assert!(reports.len() < 10_000, "{} reports", reports.len());
}

#[tokio::test]
async fn long_message_is_cut_and_any_value_arrives() {
    let (pool, reports) = (builder().build().unwrap(), Reports::default());
    assert_eq!(pool.run(Report::Long(100_000)).on_progress(reports.callback()).await, Ok(()));
    let (value, message) = reports.last().unwrap();
    assert_eq!((value.is_nan(), message.len()), (true, 4096));
}

#[tokio::test]
async fn callback_that_panics_loses_only_the_report() {
    let pool = builder().build().unwrap();
    let before = pid_of(&pool).await;
    let job = pool.run(Report::Steps(3)).on_progress(|_, _| panic!("as requested"));
    assert_eq!(job.await, Ok(()));
    assert_eq!(pid_of(&pool).await, before);
}

#[tokio::test]
async fn end_of_a_cancelled_job_can_be_awaited() {
    let pool = builder().grace(Duration::from_secs(60)).build().unwrap();
    let meeting = Meeting::new();
    let job = pool.run(Do::UntilCancelled(meeting.port()));
    let _held = meeting.entered().await;
    job.cancel();
    assert_eq!(job.await, Ok(b"cancelled".to_vec()), "returned within the grace period");

    let pool = builder().grace(Duration::from_millis(1)).build().unwrap();
    let pid = pid_of(&pool).await;
    let job = pool.run(Do::Hold(meeting.port()));
    let _held = meeting.entered().await;
    let waits = pool.run(Do::Pid);
    job.cancel();
    waits.cancel();
    assert_eq!(job.await, Err(RunError::Killed { by: KilledBy::Cancelled }));
    assert!(is_reaped(pid));
    assert_eq!(waits.await, Err(RunError::Rejected(CallError::Closed)), "it has not started");
}

#[tokio::test]
async fn job_does_not_start_without_its_guard() {
    let pool = builder().build().unwrap();
    let before = pid_of(&pool).await;
    let (refused, panics) = (|| None::<()>, || -> Option<()> { panic!("as requested") });
    let closed = Err(RunError::Rejected(CallError::Closed));
    assert_eq!(pool.run_if(CallOptions::new(), refused, Do::Abort).await, closed);
    assert_eq!(pool.run_if(CallOptions::new(), panics, Do::Abort).await, closed);
    assert_eq!(pid_of(&pool).await, before);
}

#[tokio::test]
async fn guard_is_held_until_the_process_is_gone() {
    let pool = builder().grace(Duration::from_millis(1)).build().unwrap();
    let (meeting, pid, guard) = (Meeting::new(), pid_of(&pool).await, Arc::new(()));
    let held_guard = guard.clone();
    let job = pool.run_if(CallOptions::new(), move || Some(held_guard), Do::Hold(meeting.port()));
    let held = meeting.entered().await;
    assert_eq!(Arc::strong_count(&guard), 2);
    drop(job);
    eventually("dropped", || Arc::strong_count(&guard) == 1).await;
    assert!(is_reaped(pid));
    drop(held);
}
