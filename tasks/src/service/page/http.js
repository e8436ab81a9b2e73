// Requests to the service: the token, problems, event streams and polling.

const base = location.pathname.replace(/\/?$/, "/");
const isReadOnly = document.documentElement.dataset.access === "read-only";

// The token is kept for the tab only. Without storage it is kept until the page is left.
const tokenKey = "tower-offload-tasks " + base;
let token = "";
try { token = sessionStorage.getItem(tokenKey) || ""; } catch { /* storage is disabled */ }

function setToken(value) {
  token = value;
  try {
    if (value) sessionStorage.setItem(tokenKey, value); else sessionStorage.removeItem(tokenKey);
  } catch { /* storage is disabled */ }
}

// A response that is not a success, or none at all (status 0).
class Problem extends Error {
  constructor(status, detail) {
    super(status ? status + ": " + detail : detail);
    this.status = status;
    this.detail = detail;
  }
}

async function problemOf(response) {
  let detail = "";
  try {
    const problem = await response.json();
    detail = String(problem.detail || problem.title || "");
  } catch { /* the response of a proxy */ }
  return new Problem(response.status, cut(detail || response.statusText || "the request failed", 500));
}

const REQUEST_TIMEOUT = 30000;

// Sends a request and returns its JSON. A request that changes something has a body even if it
// needs none: forms of other sites cannot send this content type.
async function send(method, path, { body = {}, signal, timeout = REQUEST_TIMEOUT } = {}) {
  const controller = new AbortController();
  const abort = () => controller.abort();
  if (signal) signal.addEventListener("abort", abort);
  const timer = setTimeout(abort, timeout);
  try {
    const hasBody = method === "POST" || method === "PATCH";
    const headers = hasBody ? { "content-type": "application/json" } : {};
    const response = await request(path, { method, headers, body: hasBody ? JSON.stringify(body) : undefined, signal: controller.signal });
    const text = await response.text();
    try {
      return parseJson(text);
    } catch {
      throw new Problem(0, "the response is not JSON: the session may have ended");
    }
  } catch (error) {
    if (error instanceof Problem || (signal && signal.aborted)) throw error;
    throw new Problem(0, controller.signal.aborted ? "the service does not respond" : "the service cannot be reached");
  } finally {
    clearTimeout(timer);
    if (signal) signal.removeEventListener("abort", abort);
  }
}

// Sends a request with the token and returns the response if it is a success.
async function request(path, options) {
  const headers = { accept: "application/json", ...options.headers };
  if (token) headers.authorization = "Bearer " + token;
  const response = await fetch(base + path, { ...options, headers, cache: "no-store" });
  if (!response.ok) throw await problemOf(response);
  return response;
}

// Parses JSON. Integers that a number cannot represent keep their digits, if the browser can do
// that and the nesting is not too deep for it.
function parseJson(text) {
  const keepDigits = (key, value, context) => {
    const isLarge = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
    return isLarge && context && context.source && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
  };
  try {
    return JSON.parse(text, keepDigits);
  } catch (error) {
    if (error instanceof RangeError) return JSON.parse(text);
    throw error;
  }
}

const MAX_EVENT_LENGTH = 4 * 1024 * 1024;

// Yields the server-sent events of a body.
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", event = { name: "message", data: [] };
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      if (rest.length > MAX_EVENT_LENGTH) throw new Problem(0, "an event is too long");
      for (const line of lines) {
        const [, field, text] = /^([^:]*):? ?([^]*)$/.exec(line);
        if (field === "event") event.name = text;
        else if (field === "data") event.data.push(text);
        else if (field === "id") event.id = text;
        else if (field === "retry" && /^\d+$/.test(text)) event.retry = Number(text);
        else if (line === "") {
          if (event.data.length || event.retry) yield event;
          event = { name: "message", data: [] };
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const MAX_DELAY = 30000;

function sleep(delay, signal) {
  return new Promise(done => {
    const timer = setTimeout(done, delay);
    signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
  });
}

// Follows the events of a task until it has finished, and resumes after the last event when the
// stream ends early. `EventSource` cannot send an `Authorization` header, so this reads the
// response.
async function follow(id, signal, lastEventId, { onEvent, onOpen, onProblem }) {
  let retry = 1000, failures = 0;
  while (!signal.aborted) {
    try {
      const headers = { accept: "text/event-stream" };
      if (lastEventId) headers["last-event-id"] = lastEventId;
      const response = await request(id + "/events", { headers, signal });
      if (response.status === 204) return;
      onOpen(true);
      for await (const event of readEvents(response.body)) {
        failures = 0;
        if (event.retry) retry = event.retry;
        if (event.id) lastEventId = event.id;
        if (!event.data.length) continue;
        onEvent(event.name, parseJson(event.data.join("\n")), lastEventId);
        if (event.name === "finished") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      failures += 1;
      onProblem(error instanceof Problem ? error : new Problem(0, "the stream was interrupted"));
      if (error.status >= 400 && error.status < 500) return;
    } finally {
      onOpen(false);
    }
    await sleep(Math.min(MAX_DELAY, retry * 2 ** Math.min(failures, 5)), signal);
  }
}

// Everything that repeats. Nothing does while the page is hidden.
const polls = [];
let isLive = true;

// Returns a poll that calls `load` every `interval` milliseconds while it is active. It waits
// longer if the service is slow or fails, so that a poll uses at most a fifth of one connection.
// `now` drops the request on its way, since its response may be older than an action.
function makePoll(interval, load) {
  const poll = { isActive: false, timer: 0, controller: null, failures: 0 };
  poll.stop = () => {
    clearTimeout(poll.timer);
    if (poll.controller) poll.controller.abort();
  };
  poll.now = async () => {
    poll.stop();
    if (!poll.isActive || document.hidden) return;
    const controller = poll.controller = new AbortController();
    const start = performance.now();
    try {
      await load(controller.signal);
      poll.failures = 0;
    } catch (error) {
      if (controller.signal.aborted) return;
      if (!(error instanceof Problem)) reportError(error);
      poll.failures += 1;
    }
    if (controller.signal.aborted || !isLive) return;
    const delay = Math.max(interval * 2 ** Math.min(poll.failures, 5), 4 * (performance.now() - start));
    poll.timer = setTimeout(poll.now, Math.min(delay, MAX_DELAY));
  };
  poll.setActive = isActive => {
    poll.isActive = isActive;
    if (isActive) poll.now(); else poll.stop();
  };
  polls.push(poll);
  return poll;
}
