//! How work ends by itself.

use std::{fs, os::fd::AsRawFd, time::Duration};

use tower::ServiceExt;
use tower_offload::{
    CallError,
    pool::CallOptions,
    process::{KilledBy, RunError},
};

use crate::support::{
    Attributes, Do, Impostor, Meeting, Nest, Other, PATIENCE, Tagged, Undecodable, Unknown, Untagged, builder,
    eventually, number, pid_of, pool_that_holds_starts,
};

#[tokio::test]
async fn output_error_and_other_kinds_travel_back() {
    let pool = builder().build().unwrap();
    assert_eq!(pool.run(Do::Echo(b"in".to_vec())).await, Ok(b"in".to_vec()));
    assert_eq!(pool.run(Do::Fail("no".to_owned())).await, Err(RunError::Failed("no".to_owned())));
    assert_eq!(pool.run(Other).await.unwrap(), "other");
    assert_eq!(pool.clone().oneshot(Do::Echo(b"in".to_vec())).await, Ok(b"in".to_vec()));
    assert!(pool.shutdown(Duration::from_secs(5)).await.is_empty());
    assert_eq!(pool.stats().alive, 0);
}

#[tokio::test]
async fn panic_travels_back_and_does_not_cost_the_process() {
    let pool = builder().build().unwrap();
    let before = pid_of(&pool).await;
    let Err(RunError::Panicked(panic)) = pool.run(Do::Panic("broken".to_owned())).await else { panic!("no panic") };
    assert_eq!(panic.message(), "broken");
    assert!(panic.location().contains("support.rs:"), "{panic}");
    assert_eq!(pid_of(&pool).await, before);
}

#[tokio::test]
async fn panic_while_the_input_is_decoded_travels_back_too() {
    let pool = builder().build().unwrap();
    let before = pid_of(&pool).await;
    let ended = tokio::time::timeout(PATIENCE, pool.run(Undecodable)).await;
    let Ok(Err(RunError::Panicked(panic))) = ended else { panic!("{ended:?}") };
    assert_eq!(panic.message(), "undecodable");
    assert_eq!(pid_of(&pool).await, before);
}

#[tokio::test]
async fn crash_and_exit_fail_only_their_job() {
    let pool = builder().build().unwrap();
    let crash = KilledBy::Crash(6);
    assert_eq!(pool.run(Do::Abort).await, Err(RunError::Killed { by: crash }));
    assert_eq!(pool.run(Do::Exit(3)).await, Err(RunError::Exited { code: Some(3) }));
    let stats = pool.stats();
    assert_eq!((stats.crashed, stats.exited, stats.protocol_errors), (1, 1, 0));
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
    assert_eq!(pool.stats().crashed, 1);
}

#[tokio::test]
async fn data_over_the_limit_is_a_typed_error() {
    let pool = builder().max_frame_size(64 * 1024).build().unwrap();
    let before = pid_of(&pool).await;
    for work in [Do::Echo(vec![0; 64 * 1024]), Do::Return(64 * 1024)] {
        let Err(RunError::InvalidData(error)) = pool.run(work).await else { panic!("no error") };
        assert!(error.is_too_large(), "{error}");
    }
    assert_eq!(pool.run(Do::Return(64 * 1024 - 8)).await.unwrap().len(), 64 * 1024 - 8);
    assert_eq!(pid_of(&pool).await, before);
}

#[tokio::test]
async fn unknown_kind_is_named_and_does_not_cost_the_process() {
    let pool = builder().build().unwrap();
    let before = pid_of(&pool).await;
    assert_eq!(pool.run(Unknown).await, Err(RunError::UnknownKind("unknown")));
    assert_eq!(pid_of(&pool).await, before);
}

#[tokio::test]
async fn large_input_and_output_fit() {
    let pool = builder().build().unwrap();
    let bytes = (0..4_000_000_u32).map(|byte| byte as u8).collect::<Vec<_>>();
    assert_eq!(pool.run(Do::Echo(bytes.clone())).await, Ok(bytes));
}

/// As the documentation of the module recommends.
#[tokio::test]
async fn large_input_may_be_an_open_file_without_a_name() {
    let pool = builder().max_frame_size(64 * 1024).build().unwrap();
    let name = std::env::temp_dir().join(format!("process-test-input-{}", std::process::id()));
    let file = fs::File::create_new(&name).unwrap();
    fs::write(&name, vec![7; 1_000_000]).unwrap();
    fs::remove_file(&name).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    assert_eq!(number(pool.run(Do::Measure(path.into())).await.unwrap()), 1_000_000);
}

#[tokio::test]
async fn work_sees_the_environment_of_its_pool() {
    let variables = [("PROCESS_TEST_VARIABLE", "of the pool"), ("TOWER_OFFLOAD_PROCESS", "overwritten")];
    let pool = builder().environment(variables).build().unwrap();
    let variable = |name: &str| Do::Variable(name.to_owned());
    assert_eq!(pool.run(variable("PROCESS_TEST_VARIABLE")).await.unwrap(), b"of the pool");
    let inherited = std::env::var("PATH").unwrap();
    assert_eq!(pool.run(variable("PATH")).await.unwrap(), inherited.into_bytes());
}

#[tokio::test]
async fn work_sees_its_deadline_and_no_stdin() {
    let pool = builder().build().unwrap();
    let limit = Duration::from_secs(600);
    let by_deadline = pool.run_with(CallOptions::new().timeout(limit), Do::Remaining).await.unwrap();
    // The process is occupied, so the timeout is set before the job begins.
    let meeting = Meeting::new();
    let occupied = pool.run(Do::Hold(meeting.port()));
    let held = meeting.entered().await;
    let by_timeout = pool.run(Do::Remaining).timeout(limit);
    drop(held);
    occupied.await.unwrap();
    let by_timeout = number(by_timeout.await.unwrap());
    // The job has begun when the timeout is set.
    let job = pool.run(Do::UntilRemaining(meeting.port()));
    let _begun = meeting.entered().await;
    let set_later = number(job.timeout(limit).await.unwrap());
    for left in [number(by_deadline), by_timeout, set_later] {
        assert!((500_000..=600_000).contains(&left), "{left}");
    }
    assert_eq!(number(pool.run(Do::Remaining).await.unwrap()), 0);
    assert_eq!(pool.run(Do::ReadStdin).await, Ok(Vec::new()));
}

#[tokio::test]
async fn deadline_counts_while_the_job_waits_for_a_process() {
    let meeting = Meeting::new();
    let pool = pool_that_holds_starts(builder(), &meeting).await;
    assert!(pool.run(Do::Abort).await.is_err());
    let starting = meeting.entered().await;
    let job = pool.run_with(CallOptions::new().timeout(Duration::from_secs(600)), Do::Remaining);
    eventually("the job waits for a process", || pool.stats().jobs.started == 2).await;
    // Takes real time, which must be missing later.
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(starting);
    let left = number(job.await.unwrap());
    assert!((500_000..=599_950).contains(&left), "{left}");
}

#[tokio::test]
async fn trace_context_that_panics_is_none() {
    let pool = builder().trace_context(|| panic!("no trace")).build().unwrap();
    assert_eq!(pool.run(Do::TraceContext).await, Ok(Vec::new()));
}

#[tokio::test]
async fn work_sees_the_trace_context_of_its_caller() {
    let parents = ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(), "x".repeat(1025)];
    for (parent, seen) in parents.into_iter().zip([true, false]) {
        let pool = builder().trace_context({
            let parent = parent.clone();
            move || Some(parent.clone())
        });
        let trace = pool.build().unwrap().run(Do::TraceContext).await.unwrap();
        assert_eq!(trace, if seen { parent.into_bytes() } else { Vec::new() });
    }
    assert_eq!(builder().build().unwrap().run(Do::TraceContext).await, Ok(Vec::new()));
}

#[test]
fn error_becomes_a_response_that_says_whether_to_retry() {
    use axum::response::IntoResponse;

    type Failure = RunError<String>;
    let response = |error: Failure| {
        let response = error.into_response();
        (response.status().as_u16(), response.headers().contains_key("retry-after"))
    };
    assert_eq!(response(RunError::Rejected(CallError::Overloaded)), (503, true));
    assert_eq!(response(RunError::Rejected(CallError::DeadlineExceeded)), (504, false));
    assert_eq!(response(RunError::Killed { by: KilledBy::Timeout }), (504, false));
    assert_eq!(response(RunError::Killed { by: KilledBy::Crash(11) }), (500, false));
    assert_eq!(response(RunError::Failed("of the work".to_owned())), (500, false));
}

#[tokio::test]
async fn attributes_of_serde_have_their_meaning() {
    let pool = builder().build().unwrap();
    let work = Attributes {
        skipped: None,
        number: 0,
        bytes: vec![2, 9, 255],
        tagged: Some(Tagged::Text { text: "text".to_owned() }),
        untagged: Vec::new(),
        json: serde_json::json!({ "list": [1, null, "two", 2.5] }),
        rest: [("more".to_owned(), 7)].into(),
    };
    for skipped in [None, Some(3)] {
        let work = Attributes { skipped, ..work.clone() };
        assert_eq!(pool.run(work.clone()).await, Ok(work));
    }
    let mixed = vec![Untagged::Byte(1), Untagged::Text("a".to_owned()), Untagged::Bytes(b"abc".to_vec())];
    let work = Attributes {
        tagged: Some(Tagged::Bytes { bytes: vec![1], address: [127, 0, 0, 1].into() }),
        untagged: mixed,
        ..work
    };
    assert_eq!(pool.run(work.clone()).await, Ok(work));
}

#[tokio::test]
async fn deep_output_is_an_error_instead_of_a_stack_overflow() {
    let pool = builder().build().unwrap();
    let before = pid_of(&pool).await;
    assert!(pool.run(Nest(100)).await.is_ok());
    let Err(RunError::InvalidData(error)) = pool.run(Nest(1000)).await else { panic!("no error") };
    assert!(error.to_string().contains("nested"), "{error}");
    assert_eq!(pid_of(&pool).await, before);
}

#[tokio::test]
async fn type_with_the_kind_of_another_one_does_not_run() {
    // Registers the types of this test program, as `main` of a program does.
    crate::support::process_worker();
    let pool = builder().build().unwrap();
    assert!(pool.can_run::<Other>() && !pool.can_run::<Impostor>() && !pool.can_run::<Unknown>());
    assert_eq!(pool.run(Impostor).await, Err(RunError::UnknownKind("other")));
    assert_eq!(pool.run(Other).await.unwrap(), "other");
}

#[tokio::test]
async fn work_that_closes_the_socket_of_its_process_ends() {
    let pool = builder().build().unwrap();
    for _ in 0..4 {
        let error = pool.run(Do::CloseDescriptors).await.unwrap_err();
        assert!(!matches!(error, RunError::Failed(_)), "{error}");
    }
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
}

#[test]
fn error_has_the_reason_of_the_work_in_its_message() {
    let error = RunError::Failed("no paper".to_owned());
    assert_eq!(error.to_string(), "no paper");
    let boxed: Box<dyn std::error::Error> = error.into(); // `?` works, although a `String` is no error
    assert!(boxed.source().is_none());
}
