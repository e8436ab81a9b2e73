use std::{net::SocketAddr, time::Duration};

use axum::Router;
use tokio::net::TcpListener;

use super::{
    browser::Browser,
    controlled::{Controlled, send},
};
use crate::StatusService;

#[tokio::test]
async fn page_needs_no_other_resources_and_runs_only_its_script() {
    let service = Controlled::new().await.service();
    let (first, second) = (
        send(&service, "GET", "/", &[("accept", "text/html")]).await,
        send(&service, "GET", "/", &[("accept", "text/html")]).await,
    );
    let policy = first.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'nonce-") && !policy.contains("unsafe"), "{policy}");
    assert_ne!(policy, second.header("content-security-policy"), "a nonce is used once");
    assert_eq!(first.header("cache-control"), "no-store");
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(first.text.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    for markup in ["{{", "http:", "https:", "//cdn", "innerHTML", "style=", "onclick", "src="] {
        assert!(!first.text.contains(markup), "{markup}");
    }
}

async fn serve(service: StatusService) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().nest_service("/tasks", service)).await });
    address
}

fn cell(id: impl std::fmt::Display, selector: &str) -> String {
    format!(
        "[...document.querySelectorAll('tbody')].find(row => row.textContent.includes('{id}')).querySelector('{selector}')"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_shows_live_tasks_in_a_browser() {
    let Some(mut browser) = Browser::start().await else { return };
    let test = tokio::time::timeout(Duration::from_secs(180), scenario(&mut browser)).await;
    assert!(test.is_ok(), "the browser does not respond");
    assert_eq!(browser.console, [""; 0], "the console must be empty");
    browser.close().await;
}

async fn scenario(browser: &mut Browser) {
    let tasks = Controlled::new().await;
    let address = serve(tasks.service()).await;
    browser.size(1200, 760).await;
    browser.scheme("light").await;
    browser.open(&format!("http://{address}/tasks")).await; // without a trailing slash
    browser.until("!document.getElementById('empty').hidden").await;

    // Rows appear and change.
    let id = tasks.accept("monthly report").await;
    browser.until(&format!("{}.textContent === 'queued'", cell(id, ".chip"))).await;
    tasks.start(id).await;
    tasks.advance(id, 0.42, "reading rows").await;
    browser.until(&format!("{}.value === 0.42", cell(id, "progress"))).await;
    browser.until(&format!("{}.textContent === 'running'", cell(id, ".chip"))).await;
    assert_eq!(browser.evaluate(&format!("{}.textContent", cell(id, ".message"))).await, "reading rows");
    browser.until(&format!("/^[1-9]\\d* s$/.test({}.textContent)", cell(id, ".age"))).await;

    // Text from tasks is not interpreted as markup.
    let markup_name = "<img src=x onerror=\"document.title='owned'\">";
    let failed = tasks.accept(markup_name).await;
    tasks.start(failed).await;
    tasks.fail(failed, "<script>document.title='owned'</script> the disk is full").await;
    browser.until(&format!("{}.textContent === 'failed'", cell(failed, ".chip"))).await;
    assert_eq!(browser.evaluate(&format!("{}.textContent", cell(failed, ".name"))).await, markup_name);
    let markup = browser.evaluate("document.querySelectorAll('main img, main script').length").await;
    assert_eq!((markup, browser.evaluate("document.title").await), (0.into(), "Tasks".into()));
    assert_eq!(browser.evaluate(&format!("{}.hidden", cell(failed, ".cancel"))).await, true);

    let done = tasks.accept("thumbnails").await;
    tasks.start(done).await;
    tasks.advance(done, 1.0, "42 of 42").await;
    tasks.succeed(done).await;
    tasks.accept("newsletter").await;
    let other = tasks.accept("import").await;
    tasks.start(other).await;
    browser.until("document.querySelectorAll('tbody').length === 5").await;

    // The details follow the event stream.
    browser.evaluate(&format!("{}.click()", cell(id, ".more"))).await;
    tasks.advance(id, 0.77, "writing").await;
    browser.until(&format!("{}.textContent.includes('0.77')", cell(id, "pre"))).await;
    check_layouts(browser).await;

    cancel_by_keyboard(browser, id).await;

    browser.evaluate("{ const s = document.getElementById('state'); s.value = 'succeeded'; s.dispatchEvent(new Event('change')); }").await;
    browser.until("document.querySelectorAll('tbody').length === 1").await;
    check_paging(browser, &tasks).await;
}

async fn cancel_by_keyboard(browser: &mut Browser, id: crate::TaskId) {
    browser.evaluate("document.getElementById('name').focus()").await;
    let is_focused = format!("document.activeElement === {}", cell(id, ".cancel"));
    for _ in 0..40 {
        browser.press("Tab").await;
        if browser.evaluate(&is_focused).await == true {
            break;
        }
    }
    assert_eq!(browser.evaluate(&is_focused).await, true, "not reached by Tab");
    let outline = browser.evaluate("getComputedStyle(document.activeElement).outlineStyle").await;
    assert_eq!(outline, "solid", "the focus must be visible");
    browser.press("Enter").await;
    browser.until(&format!("{}.textContent === 'cancelling'", cell(id, ".chip"))).await;
    assert_eq!(browser.evaluate(&format!("{}.getAttribute('aria-disabled')", cell(id, ".cancel"))).await, "true");
    assert_eq!(browser.evaluate(&is_focused).await, true, "the focus must stay");
}

/// Checks light, dark and narrow layouts: nothing is wider than the window, and the contrast is
/// sufficient.
async fn check_layouts(browser: &mut Browser) {
    for (name, scheme, width) in
        [("light", "light", 1200), ("dark", "dark", 1200), ("narrow", "light", 360), ("narrow-dark", "dark", 360)]
    {
        browser.scheme(scheme).await;
        browser.size(width, 760).await;
        browser.until(&format!("innerWidth === {width} && document.documentElement.scrollWidth <= {width}")).await;
        let contrast = browser.evaluate(CONTRAST).await;
        assert!(contrast["least"].as_f64().is_some_and(|least| least >= 4.5), "{name}: {contrast}");
        browser.screenshot(name).await;
    }
    let heights = browser
        .evaluate("[...document.querySelectorAll('button')].filter(b => b.offsetHeight).map(b => b.offsetHeight)")
        .await;
    assert!(heights.as_array().is_some_and(|all| all.iter().all(|height| height.as_u64() >= Some(24))), "{heights}");
    browser.scheme("light").await;
    browser.size(1200, 760).await;
}

/// Returns the lowest contrast of a text with its background, as defined by WCAG 2.
const CONTRAST: &str = "(() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => { const [r, g, b] = parts(colour).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const ground = element => { for (; element; element = element.parentElement) { const colour = getComputedStyle(element).backgroundColor;
    if ((parts(colour)[3] ?? 1) > 0) return colour; } return 'rgb(255,255,255)'; };
  let least = 99, of = '';
  for (const element of document.querySelectorAll('main *')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || !element.offsetHeight) continue;
    if (element.closest('[aria-disabled=true]') || element.tagName === 'OPTION') continue;
    const [one, other] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    const contrast = (one + .05) / (other + .05);
    if (contrast < least) [least, of] = [contrast, element.className + ': ' + element.textContent];
  }
  return { least, of };
})()";

async fn check_paging(browser: &mut Browser, tasks: &Controlled) {
    for _ in 0..60 {
        tasks.accept("batch").await;
    }
    browser
        .evaluate(
            "{ const s = document.getElementById('state'); s.value = 'queued'; s.dispatchEvent(new Event('change')); }",
        )
        .await;
    browser.until("document.querySelectorAll('tbody').length === 50 && !document.getElementById('older').hidden").await;
    browser.evaluate("document.getElementById('older').click()").await;
    browser.until("document.querySelectorAll('tbody').length === 11 && document.getElementById('older').hidden").await;
    browser.evaluate("document.getElementById('newest').click()").await;
    browser.until("document.querySelectorAll('tbody').length === 50").await;
}
