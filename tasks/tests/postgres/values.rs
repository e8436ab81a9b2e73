//! Arguments of jobs, which Postgres stores as `jsonb`.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use tower_offload_tasks::{
    TaskState,
    jobs::{Job, Jobs},
};

use super::{
    databases::OnServer,
    support::{LONG, tasks},
};

#[derive(Serialize, Deserialize)]
struct Floats(Vec<f64>);

impl Job for Floats {
    const KIND: &'static str = "floats";
    const MAX_ATTEMPTS: u16 = 1;
}

#[tokio::test(flavor = "multi_thread")]
async fn floats_of_any_size_reach_the_worker_unchanged() {
    let Some(database) = OnServer::fresh().await else { return };
    let tasks = tasks(&database.url()).await;
    let received = Arc::new(Mutex::new(Vec::new()));
    let receive = received.clone();
    let work = move |Floats(floats): Floats, _| {
        receive.lock().unwrap().extend(floats);
        async { Ok::<_, Infallible>(()) }
    };
    let jobs = Jobs::builder(&tasks).worker(LONG, work).start().await.unwrap();
    let mut floats = vec![f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324, f64::EPSILON, 0.1 + 0.2, 1e300, 1e-300, 0.0];
    let mut random = [0; 4000];
    getrandom::fill(&mut random).unwrap();
    let random = random.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
    floats.extend(random.filter(|float| float.is_finite()));
    let id = jobs.enqueue(Floats(floats.clone())).await.unwrap().id();
    let mut job = tasks.subscribe(id).await.unwrap().unwrap();
    while job.changed().await.unwrap().is_some() {}
    assert_eq!(job.record().state, TaskState::Succeeded, "{:?}", job.record().failure);
    let received = std::mem::take(&mut *received.lock().unwrap());
    for (sent, received) in floats.iter().zip(&received) {
        assert_eq!(sent.to_bits(), received.to_bits(), "{sent:e} became {received:e}");
    }
    assert_eq!(floats.len(), received.len());
}
