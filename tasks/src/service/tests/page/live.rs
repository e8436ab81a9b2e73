//! The page with a real service, whose tasks the test controls.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;

use super::{cell, check_layouts, in_browser};
use crate::{
    StatusService,
    service::tests::{browser::Browser, controlled::Controlled},
};

async fn serve(service: StatusService) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().nest_service("/tasks", service)).await });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_shows_live_tasks_in_a_browser() {
    in_browser(scenario).await;
}

async fn scenario(browser: &mut Browser) {
    let tasks = Controlled::new().await;
    let address = serve(tasks.service()).await;
    browser.size(1200, 760).await;
    browser.scheme("light").await;
    browser.open(&format!("http://{address}/tasks")).await; // without a trailing slash
    browser.until("document.querySelector('#list .empty').textContent === 'No tasks.'").await;

    // Rows appear and change.
    let id = tasks.accept("monthly report").await;
    browser.until(&format!("{}.textContent === 'queued'", cell(id, ".chip"))).await;
    tasks.start(id).await;
    tasks.advance(id, 0.42, "reading rows").await;
    browser.until(&format!("{}.value === 0.42", cell(id, "progress"))).await;
    browser.until(&format!("{}.textContent === 'running'", cell(id, ".chip"))).await;
    assert_eq!(browser.evaluate(&format!("{}.textContent", cell(id, ".message"))).await, "reading rows");
    browser.until(&format!("/^[1-9]\\d* s ago$/.test({}.textContent)", cell(id, "time"))).await;
    let title = browser.evaluate(&format!("{}.title", cell(id, "time"))).await;
    assert!(title.as_str().is_some_and(|title| title.contains("Z (UTC)")), "{title}");

    let failed = tasks.accept("import").await;
    tasks.start(failed).await;
    tasks.fail(failed, "the disk is full").await;
    browser.until(&format!("{}.textContent === 'failed'", cell(failed, ".chip"))).await;
    assert_eq!(browser.evaluate(&format!("{}.textContent", cell(failed, ".error"))).await, "io: the disk is full");
    assert_eq!(browser.evaluate(&format!("{}.hidden", cell(failed, ".cancel"))).await, true);
    let done = tasks.accept("thumbnails").await;
    tasks.start(done).await;
    tasks.advance(done, 1.0, "42 of 42").await;
    tasks.succeed(done).await;
    tasks.accept("newsletter").await;
    browser.until("document.querySelectorAll('#tasks tbody tr').length === 4").await;
    check_layouts(browser, "list").await;

    // The view of a task follows its events.
    browser.evaluate(&format!("{}.click()", cell(id, "a"))).await;
    browser.until("document.activeElement.id === 'task-title'").await;
    tasks.advance(id, 0.77, "writing").await;
    browser.until("document.getElementById('task-work').textContent.includes('writing')").await;
    browser.until("document.querySelector('#events strong').textContent === 'progress'").await;
    check_layouts(browser, "task").await;
    tasks.succeed(id).await;
    browser.until("document.getElementById('task-state').textContent === 'succeeded'").await;
    assert_eq!(browser.text("#task-result pre").await, "[\n  \"row\"\n]");
    browser.until("document.getElementById('stream').textContent === 'No further events.'").await;

    // The address is that of the task, and the history works. The focus returns to the task.
    assert_eq!(browser.evaluate("location.search").await, format!("?task={id}"));
    browser.evaluate("history.back()").await;
    browser.until(&format!("document.activeElement === {}", cell(id, "a"))).await;

    let slow = tasks.accept("slow").await;
    tasks.start(slow).await;
    browser.until(&format!("{}.offsetHeight", cell(slow, ".cancel"))).await;
    cancel_by_keyboard(browser, slow).await;

    browser.click(".states .succeeded").await;
    browser.until("document.querySelectorAll('#tasks tbody tr:not(.gone)').length === 2").await;
    assert_eq!(browser.evaluate("location.search").await, "?state=succeeded");
    let kept = browser.evaluate("document.activeElement.closest('tr').className").await;
    assert_eq!(kept, "gone", "a row that has the focus stays");
    browser.evaluate("document.activeElement.blur()").await;
    browser.until("document.querySelectorAll('#tasks tbody tr').length === 2").await;
    browser.click(".states .succeeded").await;
    check_paging(browser, &tasks).await;
}

async fn cancel_by_keyboard(browser: &mut Browser, id: crate::TaskId) {
    browser.evaluate("document.getElementById('name').focus()").await;
    browser.tab_to(&format!("element === {}", cell(id, ".cancel"))).await;
    let outline = browser.evaluate("getComputedStyle(document.activeElement).outlineStyle").await;
    assert_eq!(outline, "solid", "the focus must be visible");
    browser.press("Enter").await;
    browser.until(&format!("{}.textContent === 'cancelling'", cell(id, ".chip"))).await;
    assert_eq!(browser.text("#note p").await, "Cancellation of slow was requested.");
    assert_eq!(browser.evaluate(&format!("{}.getAttribute('aria-disabled')", cell(id, ".cancel"))).await, "true");
    let is_focused = format!("document.activeElement === {}", cell(id, ".cancel"));
    assert_eq!(browser.evaluate(&is_focused).await, true, "the focus must stay");
}

async fn check_paging(browser: &mut Browser, tasks: &Controlled) {
    for _ in 0..60 {
        tasks.accept("batch").await;
    }
    browser.enter("#name", "batch").await;
    let is_full = "document.querySelectorAll('#tasks tbody tr:not(.gone)').length === 50";
    // The newest page looks the same without the filter, which is applied after a moment.
    browser.until("location.search.includes('name=batch')").await;
    browser.until(&format!("{is_full} && !document.getElementById('older').hidden")).await;
    browser.evaluate("document.activeElement.blur()").await;
    browser.click("#older").await;
    browser.until("document.querySelectorAll('#tasks tbody tr').length === 10").await;
    browser.until("document.getElementById('older').hidden").await;
    // A view can be shared.
    let address = browser.evaluate("location.href").await;
    browser.open(address.as_str().unwrap()).await;
    browser.until("document.querySelectorAll('#tasks tbody tr').length === 10").await;
    assert_eq!(browser.evaluate("document.getElementById('name').value").await, "batch");
    browser.click("#newest").await;
    browser.until(is_full).await;
}
