use std::{
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// A page in a headless Chromium, controlled through the DevTools protocol over two pipes.
pub(super) struct Browser {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Option<String>,
    number: u64,
    profile: PathBuf,
    /// Console messages and uncaught exceptions.
    pub(super) console: Vec<String>,
}

static PROFILES: AtomicU32 = AtomicU32::new(0);

impl Browser {
    /// Returns `None` if there is no Chromium in `PATH`.
    pub(super) async fn start() -> Option<Self> {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
        let program = names
            .iter()
            .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
            .find(|path| path.exists());
        let Some(program) = program else {
            eprintln!("skipped: this test needs Chromium, which is not in PATH");
            return None;
        };
        let number = PROFILES.fetch_add(1, Relaxed);
        let profile = std::env::temp_dir().join(format!("tower-offload-page-{}-{number}", std::process::id()));
        // Chromium reads from file descriptor 3 and writes to 4.
        let script = "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(["--remote-debugging-pipe", "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser = Self { child, input, output, session: None, number: 0, profile, console: Vec::new() };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await["targetId"].clone();
        let session = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true})).await;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        Some(browser)
    }

    pub(super) async fn call(&mut self, method: &str, parameters: Value) -> Value {
        let response = self.try_call(method, parameters).await;
        response.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn try_call(&mut self, method: &str, parameters: Value) -> Result<Value, Value> {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).await.unwrap();
        loop {
            let mut bytes = Vec::new();
            self.output.read_until(0, &mut bytes).await.unwrap();
            assert_eq!(bytes.pop(), Some(0), "the browser exited during {method}");
            let mut message: Value = serde_json::from_slice(&bytes).unwrap();
            if message["id"] == self.number {
                let error = message["error"].take();
                return if error.is_null() { Ok(message["result"].take()) } else { Err(error) };
            }
            if let Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded") =
                message["method"].as_str()
            {
                self.console.push(message["params"].to_string());
            }
        }
    }

    /// Returns the value of an expression. Awaits it if it is a promise. If the page navigates
    /// meanwhile, the expression is evaluated again, in the new document.
    pub(super) async fn evaluate(&mut self, expression: &str) -> Value {
        loop {
            if let Some(value) = self.try_evaluate(expression).await {
                return value;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Returns `None` if the page navigates before the expression has a value.
    async fn try_evaluate(&mut self, expression: &str) -> Option<Value> {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        match self.try_call("Runtime.evaluate", parameters).await {
            Ok(mut response) => {
                assert!(response["exceptionDetails"].is_null(), "{expression}: {response}");
                Some(response["result"]["value"].take())
            }
            Err(error) => {
                let message = error["message"].as_str().unwrap_or_default();
                let is_navigation = ["navigated or closed", "context was destroyed", "Cannot find context"];
                assert!(is_navigation.iter().any(|part| message.contains(part)), "{expression}: {error}");
                None
            }
        }
    }

    /// Waits until an expression is true, at most a minute.
    pub(super) async fn until(&mut self, expression: &str) {
        let script = format!(
            "new Promise(done => {{ const poll = () => {{ let value = false; try {{ value = {expression}; }} catch {{}} \
             value ? done(true) : setTimeout(poll, 20); }}; poll(); }})"
        );
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), self.evaluate(&script)).await;
        assert!(waited.is_ok(), "timed out: {expression}");
    }

    pub(super) async fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url})).await;
        self.until("document.readyState === 'complete' && location.protocol === 'http:'").await;
    }

    pub(super) async fn size(&mut self, width: u32, height: u32) {
        let parameters = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", parameters).await;
    }

    pub(super) async fn scheme(&mut self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", json!({"features": [feature]})).await;
    }

    /// Presses and releases a key.
    pub(super) async fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            _ => unreachable!("unknown key {key}"),
        };
        let mut event = json!({"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code});
        if !text.is_empty() {
            event["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", event).await;
        let event = json!({"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": code});
        self.call("Input.dispatchKeyEvent", event).await;
    }

    /// Presses Tab until an expression is true of the focused element, `element`.
    pub(super) async fn tab_to(&mut self, expression: &str) {
        let is_focused = format!("(element => {expression})(document.activeElement)");
        for _ in 0..80 {
            self.press("Tab").await;
            if self.evaluate(&is_focused).await == true {
                return;
            }
        }
        unreachable!("not reached by Tab: {expression}");
    }

    pub(super) async fn click(&mut self, selector: &str) {
        self.until(&format!("document.querySelector(`{selector}`).offsetHeight")).await;
        // Not again after a navigation, which the click may have begun.
        self.try_evaluate(&format!("document.querySelector(`{selector}`).click()")).await;
    }

    /// Enters a text into an input as a user does.
    pub(super) async fn enter(&mut self, selector: &str, text: &str) {
        let script = format!(
            "{{ const input = document.querySelector(`{selector}`); input.value = {};              input.dispatchEvent(new Event('input', {{ bubbles: true }})); }}",
            json!(text)
        );
        self.evaluate(&script).await;
    }

    pub(super) async fn text(&mut self, selector: &str) -> String {
        let text = self.evaluate(&format!("document.querySelector(`{selector}`).textContent")).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Minimizes or restores the window. A minimized window hides the page.
    pub(super) async fn minimize(&mut self, is_hidden: bool) {
        let window = self.call("Browser.getWindowForTarget", json!({})).await["windowId"].clone();
        let state = if is_hidden { "minimized" } else { "normal" };
        let bounds = json!({"windowId": window, "bounds": {"windowState": state}});
        self.call("Browser.setWindowBounds", bounds).await;
        self.until(&format!("document.hidden === {is_hidden}")).await;
    }

    /// Returns what was logged, apart from responses with an error status.
    pub(super) fn errors(&self) -> Vec<&String> {
        self.console.iter().filter(|entry| !entry.contains("\"source\":\"network\"")).collect()
    }

    /// Takes a screenshot of the window, and stores it in the folder `TOWER_OFFLOAD_SCREENSHOTS`.
    /// Without that, it does nothing.
    pub(super) async fn screenshot(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("TOWER_OFFLOAD_SCREENSHOTS") else { return };
        let response = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let image = response["data"].as_str().unwrap();
        std::fs::write(PathBuf::from(folder).join(format!("{name}.png.base64")), image).unwrap();
    }

    pub(super) async fn close(mut self) {
        self.session = None;
        self.call("Browser.close", json!({})).await;
        self.child.wait().await.unwrap();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
