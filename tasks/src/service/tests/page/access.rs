//! Tokens, a service that is read-only or has no operations, and a page that is hidden.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use super::{
    cell, in_browser,
    stub::{Stub, id, task},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_offers_what_the_service_permits() {
    in_browser(async |browser| {
        let tasks =
            || std::sync::Mutex::new(vec![task(2, "import", "failed"), task(1, "thumbnails", "running")]).into();
        browser.size(1200, 760).await;

        // A service without operations: its tasks can be cancelled.
        let plain = Stub { is_plain: true, tasks: tasks(), ..Stub::default() };
        browser.open(&format!("http://{}/tasks/", plain.serve().await)).await;
        browser.until(&format!("{}.offsetHeight", cell(id(1), ".cancel"))).await;
        let line = |line: &str| plain.sent().iter().any(|sent| sent.line == line);
        while !(line("GET summary") && line("GET sequences")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let shown =
            "[...document.querySelectorAll('[data-needs], [data-bulk], .retry')].filter(e => e.offsetHeight).length";
        assert_eq!(browser.evaluate(shown).await, 0);

        // Read-only: no control is shown.
        let read_only = Stub { is_read_only: true, tasks: tasks(), ..Stub::default() };
        browser.open(&format!("http://{}/tasks/", read_only.serve().await)).await;
        browser.until(&format!("{}.offsetHeight", cell(id(1), "a"))).await;
        browser.until("document.getElementById('owner').offsetHeight").await;
        let controls =
            "[...document.querySelectorAll('main button')].filter(b => b.offsetHeight && !b.closest('.states')).length";
        assert_eq!(browser.evaluate(controls).await, 0);
        assert_eq!(browser.evaluate("document.getElementById('read-only').offsetHeight > 0").await, true);
        browser.evaluate(&format!("{}.click()", cell(id(2), "a"))).await;
        browser.until("document.getElementById('fields').offsetHeight").await;
        assert_eq!(browser.evaluate(controls).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_changes_many_tasks_without_the_summary() {
    in_browser(async |browser| {
        let stub = Stub { is_of_owner: true, ..Stub::default() };
        *stub.tasks.lock().unwrap() = vec![task(2, "import", "failed"), task(1, "thumbnails", "running")];
        browser.size(1200, 760).await;
        let page = format!("http://{}/tasks/", stub.serve().await);
        browser.open(&page).await;
        for (button, title, note) in [
            ("[data-bulk=cancel]", "Cancel 1 task?", "1 task was cancelled, and more match."),
            ("[data-bulk=retry]", "Retry 1 task?", "1 task was retried, and more match."),
        ] {
            browser.click(button).await;
            browser.until("document.getElementById('dialog').open").await;
            assert_eq!(browser.text("#dialog-title").await, title);
            browser.click("#dialog .yes").await;
            browser.until(&format!("document.querySelector('#note p').textContent === '{note}'")).await;
        }
        // The summary was denied, so the page does not ask for it again, also in another view.
        for view in ["queues", "sequences"] {
            browser.click(&format!("#top a[data-view={view}]")).await;
            browser.until(&format!("document.getElementById('{view}').offsetHeight")).await;
        }
        browser.evaluate("history.go(-2)").await;
        browser.until(&format!("{}.offsetHeight", cell(id(1), "a"))).await;
        assert_eq!(stub.sent().iter().filter(|sent| sent.line == "GET summary").count(), 1);

        // More than a page: the number is not known.
        browser.open(&format!("{page}?state=failed")).await;
        browser.click("[data-bulk=retry]").await;
        browser.until("document.getElementById('dialog').open").await;
        assert_eq!(browser.text("#dialog-title").await, "Retry up to 1,000 tasks?");
        let text = "More than 1 match, and 1,000 are changed at a time. Filter: state failed. Only jobs are changed.";
        assert_eq!(browser.text("#dialog-text").await, text);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_sends_the_token_of_its_form_and_nothing_while_it_is_hidden() {
    in_browser(async |browser| {
        let stub = Stub { token: Some("se-cret"), ..Stub::default() };
        *stub.tasks.lock().unwrap() = vec![task(1, "thumbnails", "running")];
        browser.size(1200, 760).await;
        let page = format!("http://{}/tasks/", stub.serve().await);
        browser.open(&page).await;
        browser.until("document.querySelector('#problem').textContent.includes('401: a token is needed')").await;
        browser.click("#problem button").await;
        browser.enter("#dialog input", "not a token").await;
        browser.press("Enter").await;
        browser.until("document.querySelector('#dialog .error').textContent.startsWith('A token consists')").await;
        browser.enter("#dialog input", "Bearer se-cret").await;
        browser.press("Enter").await;
        browser.until(&format!("{}.offsetHeight", cell(id(1), ".cancel"))).await;
        assert_eq!(browser.text("#problem").await, "");
        assert_eq!(browser.evaluate("Object.values(sessionStorage).join()").await, "se-cret");
        assert_eq!(browser.evaluate("localStorage.length + document.cookie.length").await, 0);

        // The stream has the token too, also after the page was loaded again.
        browser.open(&format!("{page}?task={}", id(1))).await;
        browser.until("document.querySelectorAll('#events li').length === 50").await;
        let events = format!("GET {}/events", id(1));
        let sent = stub.sent();
        assert!(sent.iter().any(|sent| sent.line == events && sent.authorization == "Bearer se-cret"));
        browser.until("document.querySelector('#events li').textContent.includes('update 999')").await;

        // Nothing happens while the page is hidden. Then the stream resumes.
        browser.minimize(true).await;
        while stub.open_streams.load(SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let count = stub.sent().len();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(stub.sent().len(), count, "a hidden page must not send requests");
        browser.minimize(false).await;
        while stub.open_streams.load(SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let resumed = stub.sent().into_iter().rfind(|sent| sent.line == events).unwrap();
        assert_eq!(resumed.last_event_id, "1.2.999");

        // Live updates can be switched off.
        browser.click("#live").await;
        browser.until("document.getElementById('stream').textContent === 'Live updates are off.'").await;
        assert_eq!(browser.evaluate("document.getElementById('live').getAttribute('aria-pressed')").await, "false");

        browser.click("#sign-in").await;
        browser.until("document.querySelector('#problem').textContent.includes('401: a token is needed')").await;
        assert_eq!(browser.evaluate("sessionStorage.length").await, 0);
    })
    .await;
}
