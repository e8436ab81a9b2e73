//! A process that stalls for longer than its lease and then continues.

use tower_offload_tests::eventually;

use super::{cluster::Cluster, network::Network, program::Program};

/// Run time of a job. Its last tenth is long enough for the test to stop the process in it.
const MILLIS: usize = 8000;

/// The fence discards the late result of a job that another process is running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_result_is_discarded_and_the_process_gets_a_new_client() {
    let Some(cluster) = Cluster::on_postgres(&[]).await else { return };
    let (first, first_url) = cluster.start().await;
    let (key, id) = stop_at_the_last_step(&cluster, &first, &first_url).await;
    let old_clients = clients(&cluster, first.process_id).await;
    let (second, second_url) = cluster.start().await;
    cluster.until("SELECT count(*) FROM tower_offload_task WHERE state = 1 AND attempt = 2", 1).await;
    let recovered = cluster.running_in(second.process_id).await;
    assert_eq!(recovered.len(), 1);

    first.signal("CONT").await;
    eventually("the attempt has ended", async || cluster.written().contains_key(&key)).await;
    // The first process starts a new client when it notices that its lease has expired.
    let renewed = format!("SELECT count(*) FROM tower_offload_client WHERE name = 'process {}'", first.process_id);
    cluster.until(&renewed, 1).await;
    assert_eq!(cluster.running_in(second.process_id).await, recovered);
    let status = cluster.http.status(&second_url, &id).await;
    assert_eq!((&status["state"], &status["attempt"]), (&"running".into(), &2.into()), "{status}");

    cluster.until_finished().await;
    let status = cluster.http.status(&first_url, &id).await;
    assert_eq!((&status["state"], &status["attempt"]), (&"succeeded".into(), &2.into()), "{status}");
    let took = "SELECT finished_at - started_at FROM tower_offload_task WHERE attempt = 2";
    assert!(cluster.database.number(took).await >= MILLIS as i64, "the result is that of the second attempt");

    second.terminate().await;
    let other = cluster.http.enqueue(&first_url, "other", 0).await;
    cluster.until_finished().await;
    assert_eq!(cluster.http.status(&first_url, &other).await["state"], "succeeded");
    let worker = "SELECT attempted_by[array_upper(attempted_by, 1)] FROM river_job ORDER BY id DESC LIMIT 1";
    let worker = cluster.database.rows::<(String,)>(worker).await.remove(0).0;
    assert!(!old_clients.contains(&worker), "{worker}");
    assert_eq!(clients(&cluster, first.process_id).await, [worker]);
    first.terminate().await;
}

/// Without a timeout the server would keep the locks of the transaction forever: on the lease, or
/// on the record of a job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn network_that_hangs_within_a_transaction_blocks_no_process() {
    let Some(cluster) = Cluster::on_postgres(&[]).await else { return };
    let network = Network::to(&cluster.database.url()).await;
    let (first, first_url) = cluster.start_on(cluster.port(), &network.url).await;
    let id = cluster.http.enqueue(&first_url, "left", MILLIS).await;
    cluster.until("SELECT count(*) FROM tower_offload_task WHERE state = 1", 1).await;
    network.hang().await;

    let (second, second_url) = cluster.start().await;
    cluster.until_finished().await;
    let status = cluster.http.status(&second_url, &id).await;
    assert_eq!((&status["state"], &status["attempt"]), (&"succeeded".into(), &2.into()), "{status}");
    first.kill().await;
    second.terminate().await;
}

/// Stops a process after its job has polled for cancellation for the last time and before it ends.
/// Returns the key and the id of the job.
async fn stop_at_the_last_step(cluster: &Cluster, program: &Program, url: &str) -> (String, String) {
    for number in 0.. {
        let key = format!("late-{number}");
        let id = cluster.http.enqueue(url, &key, MILLIS).await;
        cluster.until("SELECT count(*) FROM tower_offload_task WHERE progress > 0.85", number + 1).await;
        program.signal("STOP").await;
        if !cluster.written().contains_key(&key) {
            return (key, id);
        }
        program.signal("CONT").await; // too late, on a busy machine
        cluster.until_finished().await;
    }
    unreachable!("the loop does not end")
}

async fn clients(cluster: &Cluster, process_id: u32) -> Vec<String> {
    let query = format!("SELECT id FROM tower_offload_client WHERE name = 'process {process_id}'");
    cluster.database.rows::<(String,)>(&query).await.into_iter().map(|(id,)| id).collect()
}
