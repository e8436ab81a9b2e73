//! Text of strangers in every field, and streams of many updates.

use serde_json::{Value, json};

use super::{
    cell, check_layouts, in_browser,
    stub::{DEEP, Stub, id, task},
};

fn hostile() -> Vec<String> {
    let texts = [
        "<script>document.title='owned'</script>",
        "\"><img src=x onerror=\"document.title='owned'\">",
        "invoice \u{202e}fdp.exe\u{202c}\u{0}\u{7f}",
        "javascript:alert(1)//`${document.title='owned'}`",
        "\n\t \u{200f}\u{5d0}\u{5d1} \u{1f469}\u{200d}\u{1f467}",
    ];
    texts.map(str::to_owned).into_iter().chain(["x".repeat(4096), "<b>".repeat(1365)]).collect()
}

/// Returns a task with the text in every field that may contain one.
fn hostile_task(number: usize, text: &str, state: &str) -> Value {
    let mut task = task(number, text, state);
    for field in ["queue", "owner", "message", "reason", "parent", "due_at", "started_at"] {
        task[field] = text.into();
    }
    task[text] = text.into();
    task["error"] = json!({"class": text, "message": text, "detail": {text: [text]}});
    task["result"] = json!({text: text, "large": 12_345_678_901_234_567_890_u64});
    task
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_text_is_shown_as_text_in_every_field() {
    in_browser(async |browser| {
        let texts = hostile();
        let stub = Stub {
            pausable: texts.iter().flat_map(|text| [format!("queues/{text}"), format!("kinds/{text}")]).collect(),
            ..Stub::default()
        };
        let states = ["queued", "failed", "cancelled", "lost", "succeeded", "timed_out", "running"];
        let tasks = texts.iter().zip(states).enumerate();
        *stub.tasks.lock().unwrap() = tasks.map(|(index, (text, state))| hostile_task(index, text, state)).collect();
        let blocked = |text: &String| json!({"key": text, "held_by": text, "since": text, "waiting": 1});
        *stub.sequences.lock().unwrap() = texts.iter().map(blocked).collect();
        let page = format!("http://{}/tasks/", stub.serve().await);
        browser.size(1200, 760).await;

        let is_harmless = "document.querySelectorAll('main img, main b, main script, main [href^=javascript]').length === 0 \
            && document.title !== 'owned'";
        browser.open(&page).await;
        browser.until("!document.getElementById('bulk').hidden").await;
        browser.until(&format!("document.querySelectorAll('#tasks tbody tr').length === {}", texts.len())).await;
        check_layouts(browser, "hostile-list").await;
        assert_eq!(browser.evaluate(is_harmless).await, true);
        let name = browser.evaluate(&format!("{}.textContent", cell(id(2), "a"))).await;
        assert_eq!(name, "invoice \\u{202e}fdp.exe\\u{202c}\\u{0}\\u{7f}", "control characters are visible");

        for number in 0..texts.len() {
            browser.open(&format!("{page}?task={}", id(number))).await;
            browser.until("document.getElementById('task-result').offsetHeight").await;
            assert_eq!(browser.evaluate(is_harmless).await, true);
            assert!(browser.text("#task-result pre").await.contains("\"large\": 12345678901234567890"));
            if number == 0 {
                assert_eq!(browser.text("#task-title").await, texts[0]);
                assert_eq!(browser.text("#task-error .error").await, format!("{0}: {0}", texts[0]));
            }
            if number == 5 {
                check_layouts(browser, "hostile-task").await; // the long text
            }
        }
        let mut deep = task(100, "deep", "succeeded");
        deep["result"] = DEEP.into();
        stub.tasks.lock().unwrap().push(deep);
        browser.open(&format!("{page}?task={}", id(100))).await;
        browser.until("document.getElementById('task-result').offsetHeight").await;
        assert!(browser.text("#task-result pre").await.len() < 300_000);
        for view in ["queues", "sequences"] {
            browser.open(&format!("{page}?view={view}")).await;
            browser.until(&format!("document.querySelectorAll('#{view} tbody tr').length >= {}", texts.len())).await;
            check_layouts(browser, &format!("hostile-{view}")).await;
            assert_eq!(browser.evaluate(is_harmless).await, true);
        }
        // The dialog and the message.
        browser.click("#sequence-table .release").await;
        browser.until("document.getElementById('dialog').open").await;
        browser.click("#dialog .yes").await;
        browser.until("document.querySelector('#note p').textContent.startsWith('Sequence ')").await;
        assert_eq!(browser.evaluate(is_harmless).await, true);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_of_a_thousand_updates_keeps_the_page_small() {
    in_browser(async |browser| {
        let stub = Stub::default();
        *stub.tasks.lock().unwrap() = vec![task(1, "thumbnails", "running")];
        browser.size(1200, 760).await;
        browser.open(&format!("http://{}/tasks/", stub.serve().await)).await;
        browser
            .evaluate(
                "window.most = 0; new MutationObserver(() => { window.most = Math.max(window.most, \
                 document.querySelectorAll('#events li').length); }).observe(document.body, { childList: true, subtree: true })",
            )
            .await;
        browser.until(&format!("{}.offsetHeight", cell(id(1), "a"))).await;
        browser.evaluate(&format!("{}.click()", cell(id(1), "a"))).await;
        browser.until("document.querySelector('#events li').textContent.includes('update 999')").await;
        assert_eq!(browser.evaluate("window.most").await, 50);
        assert_eq!(browser.evaluate("document.querySelectorAll('*').length < 1000").await, true);
    })
    .await;
}
