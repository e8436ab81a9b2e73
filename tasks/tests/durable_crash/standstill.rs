//! A process that stands still for longer than its lease, and then goes on as if nothing had been.

use std::time::Duration;

use tokio::time::sleep;

use super::{network::Network, program::Program, scene::Scene};

/// Its last tenth is long enough to be stopped in.
const MILLIS: usize = 8000;

/// The fence: what it says late of a job that another has meanwhile is not heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_what_a_process_says_after_its_lease_changes_nothing_and_it_goes_on_under_another_name() {
    let Some(scene) = Scene::on_postgres(&[]).await else { return };
    let (first, first_url) = scene.start().await;
    let (key, id) = stopped_at_the_last_step(&scene, &first, &first_url).await;
    let old_clients = clients(&scene, first.process_id).await;
    let (second, second_url) = scene.start().await;
    scene.until("SELECT count(*) FROM tower_offload_task WHERE state = 1 AND attempt = 2", 1).await;
    let taken_over = scene.running_in(second.process_id).await;
    assert_eq!(taken_over.len(), 1);

    first.signal("CONT").await;
    while !scene.written().contains_key(&key) {
        sleep(Duration::from_millis(20)).await;
    }
    // The first one's new name is there when it has seen that its lease is over.
    let renewed = format!("SELECT count(*) FROM tower_offload_client WHERE name = 'process {}'", first.process_id);
    scene.until(&renewed, 1).await;
    assert_eq!(scene.running_in(second.process_id).await, taken_over);
    let status = scene.http.status(&second_url, &id).await;
    assert_eq!((&status["state"], &status["attempt"]), (&"running".into(), &2.into()), "{status}");

    scene.until_all_is_done().await;
    let status = scene.http.status(&first_url, &id).await;
    assert_eq!((&status["state"], &status["attempt"]), (&"succeeded".into(), &2.into()), "{status}");
    let took = "SELECT finished_at - started_at FROM tower_offload_task WHERE attempt = 2";
    assert!(scene.place.number(took).await >= MILLIS as i64, "the second one's work, to its end, made it so");

    second.end().await;
    let others = scene.http.enqueue(&first_url, "others", 0).await;
    scene.until_all_is_done().await;
    assert_eq!(scene.http.status(&first_url, &others).await["state"], "succeeded");
    let worker = "SELECT attempted_by[array_upper(attempted_by, 1)] FROM river_job ORDER BY id DESC LIMIT 1";
    let worker = scene.place.rows::<(String,)>(worker).await.remove(0).0;
    assert!(!old_clients.contains(&worker), "{worker}");
    assert_eq!(clients(&scene, first.process_id).await, [worker]);
    first.end().await;
}

/// The server would wait for it for ever, with all that the transaction has locked: its lease, or a job's record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_a_process_whose_network_hangs_within_a_transaction_holds_nobody_up() {
    let Some(scene) = Scene::on_postgres(&[]).await else { return };
    let network = Network::to(&scene.place.url()).await;
    let (first, first_url) = scene.start_on(0, &network.url).await;
    let id = scene.http.enqueue(&first_url, "left", MILLIS).await;
    scene.until("SELECT count(*) FROM tower_offload_task WHERE state = 1", 1).await;
    network.hang().await;

    let (second, second_url) = scene.start().await;
    scene.until_all_is_done().await;
    let status = scene.http.status(&second_url, &id).await;
    assert_eq!((&status["state"], &status["attempt"]), (&"succeeded".into(), &2.into()), "{status}");
    first.kill().await;
    second.end().await;
}

/// Key and id of a job of a process that stands still after its work has asked for the last time whether to go on, and before its end.
async fn stopped_at_the_last_step(scene: &Scene, program: &Program, url: &str) -> (String, String) {
    for number in 0.. {
        let key = format!("late-{number}");
        let id = scene.http.enqueue(url, &key, MILLIS).await;
        scene.until("SELECT count(*) FROM tower_offload_task WHERE progress > 0.85", number + 1).await;
        program.signal("STOP").await;
        if !scene.written().contains_key(&key) {
            return (key, id);
        }
        program.signal("CONT").await; // too late, on a machine that has other things to do
        scene.until_all_is_done().await;
    }
    unreachable!("one of them is caught")
}

async fn clients(scene: &Scene, process_id: u32) -> Vec<String> {
    let query = format!("SELECT id FROM tower_offload_client WHERE name = 'process {process_id}'");
    scene.place.rows::<(String,)>(&query).await.into_iter().map(|(id,)| id).collect()
}
