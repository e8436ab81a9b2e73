use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_offload::process::{KilledBy, OutputStream, RunError};

use crate::support::{Do, builder, eventually};

#[tokio::test]
async fn lines_have_the_number_of_their_job() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let pool = builder().on_output({
        let lines = lines.clone();
        move |line| lines.lock().unwrap().push((line.job.map(|(job, _)| job), line.stream, line.text.to_owned()))
    });
    let pool = pool.build().unwrap();
    for text in ["one", "two"] {
        pool.run(Do::Print(text.to_owned())).await.unwrap();
    }
    let lines = lines.lock().unwrap();
    let of_jobs = lines.iter().filter_map(|(job, stream, text)| Some(((*job)?, *stream, text.as_str())));
    let of_jobs = of_jobs.collect::<Vec<_>>();
    let (out, err) = (OutputStream::Stdout, OutputStream::Stderr);
    assert_eq!(of_jobs, [(1, err, "error one"), (1, out, "one"), (2, err, "error two"), (2, out, "two")]);
}

#[tokio::test]
async fn endless_output_is_discarded_and_blocks_nobody() {
    let pool = builder().grace(Duration::from_millis(20)).build().unwrap();
    let job = pool.run(Do::PrintForever);
    eventually("discarded", || pool.stats().output_discarded > 1 << 20).await;
    let killed = job.timeout(Duration::ZERO).await;
    assert_eq!(killed, Err(RunError::Killed { by: KilledBy::Timeout }));
}
