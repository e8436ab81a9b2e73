//! Tasks and hooks do not hold up or close their connection.

use tower_offload::{Background, after_response::AfterResponse, background::TaskHandle};

use crate::support::{ALL, Client, Door, HTTP1, Http1, Latch, Setup, Stack, after_shutdown, on_each};

/// Registers a task that waits for the latch, for each path with `?slow`.
fn slow(stack: Stack, background: &Background, latch: &Latch) -> Setup {
    let door = latch.door();
    Setup::on(stack).background(background).registers(move |after, path| {
        if path.ends_with("?slow") {
            block(after, &door);
        }
    })
}

fn block(after: &AfterResponse, door: &Door) -> TaskHandle {
    let door = door.clone();
    after.spawn_blocking(move || door.block()).unwrap()
}

#[tokio::test]
async fn running_task_does_not_delay_the_next_request() {
    on_each(ALL, |stack| async move {
        let (background, latch) = (Background::default(), Latch::new());
        let mut site = slow(stack, &background, &latch).start();
        let mut client = Client::connect(&site).await;
        assert_eq!(client.get("/full/5?slow").await, (200, 5));
        latch.reached().await;
        for size in 1..=3 {
            assert_eq!(client.get(&format!("/full/{size}")).await, (200, size));
            site.record(&format!("/full/{size}")).await.is_flushed(size);
        }
        assert_eq!(background.stats().running, 1);
        latch.open();
        assert_eq!(after_shutdown(&background).await.completed, 1);
    })
    .await;
}

#[tokio::test]
async fn running_task_does_not_delay_a_pipelined_request() {
    on_each(HTTP1, |stack| async move {
        let (background, latch) = (Background::default(), Latch::new());
        let mut site = slow(stack, &background, &latch).start();
        let mut client = Http1::connect(&site).await;
        let slow = "GET /full/5?slow HTTP/1.1\r\nhost: site\r\n\r\n";
        client.send(format!("{slow}{slow}GET /full/7 HTTP/1.1\r\nhost: site\r\n\r\n")).await;
        for body in [5, 5, 7] {
            assert_eq!(client.answer().await.body, body);
        }
        site.record("/full/7").await.is_flushed(7);
        for _ in 0..2 {
            latch.reached().await;
        }
        latch.open();
        assert_eq!(after_shutdown(&background).await.completed, 2);
    })
    .await;
}

/// A hook must not block, because it occupies a thread of the runtime. Even so its connection
/// continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_hook_does_not_delay_the_next_request() {
    on_each(ALL, |stack| async move {
        let latch = Latch::new();
        let door = latch.door();
        let setup = Setup::on(stack).registers(move |after, path| {
            if path.ends_with("?slow") {
                let door = door.clone();
                after.hook(move |_| tokio::task::block_in_place(|| door.block()));
            }
        });
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        client.get("/full/5?slow").await;
        latch.reached().await;
        assert_eq!(client.get("/full/7").await, (200, 7));
        site.record("/full/7").await.is_flushed(7);
        latch.open();
    })
    .await;
}

#[tokio::test]
async fn panics_in_tasks_and_hooks_keep_the_connection_open() {
    on_each(ALL, |stack| async move {
        let background = Background::builder().on_failure(|_| panic!("the failure sink panics")).build();
        let setup = Setup::on(stack).background(&background).registers(|after, _| {
            after.hook(|_| panic!("a hook panics"));
            after.spawn_blocking(|| panic_as_a_task("a blocking task panics")).unwrap();
            after.spawn(async { panic_as_a_task("an async task panics") }).unwrap();
            after.hook(|_| panic!("another hook panics"));
        });
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        for size in 1..=5 {
            assert_eq!(client.get(&format!("/full/{size}")).await, (200, size));
            site.record(&format!("/full/{size}")).await.is_flushed(size);
        }
        assert_eq!(after_shutdown(&background).await.failed, 10);
    })
    .await;
}

/// Panics, with the return type of a task.
fn panic_as_a_task(with: &str) {
    panic!("{with}");
}
