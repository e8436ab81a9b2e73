//! Tests of the page in a browser.

mod access;
mod hostile;
mod live;
mod operations;
mod stub;

use std::time::Duration;

use super::{
    browser::Browser,
    controlled::{Controlled, send},
};

#[tokio::test]
async fn page_needs_no_other_resources_and_runs_only_its_script() {
    let service = Controlled::new().await.service();
    let (first, second) = (
        send(&service, "GET", "/", &[("accept", "text/html")]).await,
        send(&service, "GET", "/", &[("accept", "text/html")]).await,
    );
    let policy = first.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'nonce-") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.ends_with("require-trusted-types-for 'script'; trusted-types 'none'"), "{policy}");
    assert_ne!(policy, second.header("content-security-policy"), "a nonce is used once");
    assert_eq!(first.header("cache-control"), "no-store");
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(first.text.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    for markup in ["{{", "http:", "https:", "//cdn", "innerHTML", "style=", "onclick=\"", "src="] {
        assert!(!first.text.contains(markup), "{markup}");
    }
    assert!(first.text.contains("data-access=\"full\""));
    let read_only = send(&service.read_only(), "GET", "/", &[("accept", "text/html")]).await;
    assert!(read_only.text.contains("data-access=\"read-only\""));
}

/// Runs a scenario in a browser, if there is one.
async fn in_browser(scenario: impl AsyncFnOnce(&mut Browser)) {
    let Some(mut browser) = Browser::start().await else { return };
    let test = tokio::time::timeout(Duration::from_secs(180), scenario(&mut browser)).await;
    assert!(test.is_ok(), "the browser does not respond");
    assert_eq!(browser.errors(), [""; 0], "the console must be empty");
    browser.close().await;
}

/// Returns an expression for an element in the row of a task.
fn cell(id: impl std::fmt::Display, selector: &str) -> String {
    format!(
        "[...document.querySelectorAll('#tasks tbody tr')].find(row => row.textContent.includes('{id}'))\
         .querySelector('{selector}')"
    )
}

/// Checks light, dark and narrow layouts of the present view: nothing is wider than the window, and
/// the contrast is sufficient.
async fn check_layouts(browser: &mut Browser, view: &str) {
    for (name, scheme, width) in
        [("light", "light", 1200), ("dark", "dark", 1200), ("narrow", "light", 390), ("narrow-dark", "dark", 390)]
    {
        browser.scheme(scheme).await;
        browser.size(width, 760).await;
        browser.until(&format!("innerWidth === {width} && document.documentElement.scrollWidth <= {width}")).await;
        let contrast = browser.evaluate(CONTRAST).await;
        assert!(contrast["least"].as_f64().is_some_and(|least| least >= 4.5), "{view}, {name}: {contrast}");
        browser.screenshot(&format!("{view}-{name}")).await;
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
  for (const element of document.querySelectorAll('body *')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || !element.offsetHeight) continue;
    if (element.closest('[aria-disabled=true], .gone') || element.tagName === 'SCRIPT') continue;
    const [one, other] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    const contrast = (one + .05) / (other + .05);
    if (contrast < least) [least, of] = [contrast, element.className + ': ' + element.textContent];
  }
  return { least, of };
})()";
