//! Each operation of the page is the right request, and its response is shown.

use serde_json::{Value, json};

use super::{
    cell, check_layouts, in_browser,
    stub::{Stub, id, task},
};
use crate::service::tests::browser::Browser;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_operation_of_the_page_is_one_request() {
    in_browser(async |browser| {
        let stub = Stub {
            pausable: ["queues/mail/send & more", "queues/default", "kinds/report", "kinds/locked"]
                .map(str::to_owned)
                .into(),
            ..Stub::default()
        };
        let mut owned = task(4, "slow", "queued");
        owned["owner"] = "alice".into();
        *stub.tasks.lock().unwrap() =
            vec![owned, task(3, "deleted", "failed"), task(2, "import", "failed"), task(1, "thumbnails", "running")];
        *stub.sequences.lock().unwrap() =
            vec![json!({"key": "customer:7", "held_by": id(2), "since": "2026-01-02T03:04:05Z", "waiting": 12})];
        let page = format!("http://{}/tasks/", stub.serve().await);
        browser.size(1200, 760).await;
        browser.open(&page).await;
        browser.until("!document.getElementById('bulk').hidden").await;
        browser.until(&format!("{}.offsetHeight", cell(id(1), ".cancel"))).await;

        one_task(browser, &stub).await;
        many_tasks(browser, &stub, &page).await;
        queues(browser, &stub).await;
        sequences(browser, &stub).await;
        let sent = stub.sent().into_iter().filter(|sent| sent.line.starts_with('P'));
        assert!(sent.map(|sent| sent.content_type).all(|kind| kind == "application/json"));
    })
    .await;
}

async fn expect(browser: &mut Browser, stub: &Stub, note: &str, request: &str, body: Value) {
    browser.until(&format!("document.querySelector('#note p').textContent === {}", json!(note))).await;
    assert_eq!(stub.changes().last(), Some(&(request.to_owned(), body)), "{note}");
}

async fn one_task(browser: &mut Browser, stub: &Stub) {
    browser.until(&format!("{}.offsetHeight", cell(id(2), ".retry"))).await;
    browser.evaluate(&format!("{}.focus()", cell(id(2), ".retry"))).await;
    browser.press("Enter").await;
    expect(browser, stub, "import was retried.", &format!("POST {}/retry", id(2)), json!({})).await;
    let is_on_link = format!("document.activeElement === {}", cell(id(2), "a"));
    assert_eq!(browser.evaluate(&is_on_link).await, true, "the button is gone, so the task has the focus");

    let error = "deleted could not be retried (409: River has deleted the job).";
    browser.evaluate(&format!("{}.click()", cell(id(3), ".retry"))).await;
    expect(browser, stub, error, &format!("POST {}/retry", id(3)), json!({})).await;
    assert_eq!(browser.evaluate("document.querySelector('#note').className").await, "bad");
    browser.click("#note button").await;

    browser.evaluate(&format!("{}.click()", cell(id(1), ".cancel"))).await;
    let note = "Cancellation of thumbnails was requested.";
    expect(browser, stub, note, &format!("DELETE {}", id(1)), Value::Null).await;

    // A queued job can be moved and discarded. Escape declines.
    browser.evaluate(&format!("{}.click()", cell(id(4), "a"))).await;
    browser.click("#task-actions .move").await;
    browser.enter("#dialog input", "2027-01-02T03:04:05").await;
    check_layouts(browser, "dialog").await;
    browser.press("Enter").await;
    let due = browser.evaluate("new Date('2027-01-02T03:04:05').toISOString().replace('.000', '')").await;
    let note = "slow is due at 2027-01-02 03:04:05.";
    expect(browser, stub, note, &format!("PATCH {}", id(4)), json!({ "due_at": due })).await;

    let count = stub.changes().len();
    browser.click("#task-actions .discard").await;
    browser.until("document.getElementById('dialog').open").await;
    assert_eq!(browser.text("#dialog-title").await, "Discard slow?");
    browser.press("Escape").await;
    browser.until("!document.getElementById('dialog').open").await;
    assert_eq!(stub.changes().len(), count);
    browser.click("#task-actions .discard").await;
    browser.click("#dialog .yes").await;
    expect(browser, stub, "slow was discarded.", &format!("POST {}/discard", id(4)), json!({})).await;
    assert_eq!(browser.evaluate("document.activeElement.id").await, "task-title", "the button is gone");
}

async fn many_tasks(browser: &mut Browser, stub: &Stub, page: &str) {
    // By keyboard only. The confirmation says the number, and the focus returns.
    browser.open(&format!("{page}?state=failed")).await;
    browser.until("!document.getElementById('bulk').hidden").await;
    browser.tab_to("element.dataset.bulk === 'retry'").await;
    browser.press("Enter").await;
    browser.until("document.activeElement.className === 'no'").await;
    assert_eq!(browser.text("#dialog-title").await, "Retry about 1,500 tasks?");
    assert_eq!(browser.text("#dialog-text").await, "Filter: state failed. Only jobs are changed.");
    browser.press("Tab").await;
    browser.press("Enter").await;
    let filter = json!({"state": "failed"});
    let body = json!({"action": "retry", "filter": filter, "after": id(1), "limit": 500});
    expect(browser, stub, "1,500 tasks were retried, and more match.", "POST bulk", body).await;
    // It begins with task 4, the newest one that had failed.
    let first = &stub.changes()[stub.changes().len() - 2];
    let body = json!({"action": "retry", "filter": filter, "after": id(5), "limit": 1000});
    assert_eq!(*first, ("POST bulk".to_owned(), body));
    browser.until("document.activeElement.dataset.bulk === 'retry'").await;

    // Up to a page of tasks is counted by the list. All filters are sent.
    browser.open(&format!("{page}?owner=alice&text=slow")).await;
    stub.tasks.lock().unwrap()[0]["state"] = "queued".into();
    browser.click("[data-bulk=cancel]").await;
    browser.until("document.getElementById('dialog').open").await;
    assert_eq!(browser.text("#dialog-title").await, "Cancel 1 task?");
    browser.click("#dialog .yes").await;
    let filter = json!({"state": "queued,running", "owner": "alice", "text": "slow"});
    let body = json!({"action": "cancel", "filter": filter, "after": id(5), "limit": 1});
    expect(browser, stub, "1 task was cancelled, and more match.", "POST bulk", body).await;

    browser.open(&format!("{page}?state=succeeded")).await;
    browser.click("[data-bulk=discard]").await;
    browser
        .until("document.querySelector('#note.bad p').textContent === 'No task that is succeeded can be discarded.'")
        .await;
}

async fn queues(browser: &mut Browser, stub: &Stub) {
    browser.click("#top a[data-view=queues]").await;
    browser.until("document.querySelectorAll('#kind-table tbody tr').length === 2").await;
    let button = "[aria-label='Pause queue mail/send & more']";
    browser.click(button).await;
    let note = "Queue mail/send & more is paused. Jobs that run continue.";
    expect(browser, stub, note, "POST queues/mail%2Fsend%20%26%20more/pause", json!({})).await;
    browser.until("document.querySelector('#queue-table .chip.paused').textContent === 'paused'").await;
    browser.click("[aria-label='Resume queue mail/send & more']").await;
    let note = "Queue mail/send & more is resumed.";
    expect(browser, stub, note, "POST queues/mail%2Fsend%20%26%20more/resume", json!({})).await;

    browser.click("[aria-label='Pause kind locked']").await;
    let note = "Kind locked could not be paused (403: not allowed for this kind).";
    expect(browser, stub, note, "POST kinds/locked/pause", json!({})).await;
    browser
        .until("document.querySelector(`[aria-label='Pause kind locked']`).title === 'not allowed for this kind'")
        .await;

    browser.until("document.querySelectorAll('#groups tbody tr').length === 2").await;
    let row = browser.evaluate("document.querySelector('#groups tbody tr').innerText.replace(/\\s+/g, ' ')").await;
    assert_eq!(row, "locked locked 2 0 1,500 1 min 15 s 250 ms / 1 min 30 s 250 ms / 1 min 30 s");
    check_layouts(browser, "queues").await;
    let link = browser.evaluate("document.querySelector('#groups .failed a').search").await;
    assert_eq!(link, "?state=failed%2Ctimed_out%2Clost&name=locked&queue=locked");
}

async fn sequences(browser: &mut Browser, stub: &Stub) {
    browser.click("#top a[data-view=sequences]").await;
    browser.until("document.querySelectorAll('#sequence-table tbody tr').length === 1").await;
    check_layouts(browser, "sequences").await;
    browser.click("#sequence-table .release").await;
    browser.until("document.getElementById('dialog').open").await;
    assert!(browser.text("#dialog-text").await.starts_with("12 jobs wait."));
    browser.click("#dialog .yes").await;
    let note = "Sequence customer:7 was released: 12 jobs wait no longer.";
    expect(browser, stub, note, "POST sequences/release", json!({"key": "customer:7"})).await;
    browser.until("document.querySelector('#sequences .empty').textContent === 'No sequence is blocked.'").await;
}
