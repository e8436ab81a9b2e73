// The address says what is shown, so that a view can be shared and the history works.

const PARAMETERS = ["view", "task", "after", ...FILTERS];

function parse() {
  const query = new URLSearchParams(location.search);
  return Object.fromEntries(PARAMETERS.filter(key => query.get(key)).map(key => [key, query.get(key)]));
}

// Returns the address of the present view with some changes. An empty value removes a parameter.
function linkTo(changed) {
  const all = { ...parse(), ...changed };
  const values = PARAMETERS.filter(key => all[key]).map(key => [key, all[key]]);
  return values.length ? "?" + new URLSearchParams(values) : location.pathname;
}

function go(changed, isReplacing, state = null) {
  const address = linkTo(changed);
  if (address === linkTo({})) return;
  if (isReplacing) history.replaceState(history.state, "", address); else history.pushState(state, "", address);
  render(true);
}

// Notes what the service has, and shows what depends on it.
function setService(feature, isThere) {
  if (service[feature] === isThere) return;
  service[feature] = isThere;
  for (const element of document.querySelectorAll("[data-needs]")) element.hidden = !service[element.dataset.needs];
  tasks.refresh();
  if (shownTask) showTask(shownTask);
  render(false);
}

let shownView = null;

function render(isMoved) {
  const parameters = parse();
  const view = parameters.task ? "task" : ["queues", "sequences"].includes(parameters.view) ? parameters.view : "list";
  for (const id of ["list", "task", "queues", "sequences"]) by(id).hidden = id !== view;
  for (const link of document.querySelectorAll("#top a")) {
    link.href = link.dataset.view ? "?view=" + link.dataset.view : linkTo({ view: "", task: "" });
    if (view === (link.dataset.view || "list")) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  by("back").href = linkTo({ task: "" });
  put(by("back"), parameters.view ? "Back" : "Back to the list");
  put(by("sign-in"), token ? "Sign out" : "Sign in");
  put(by("zone"), zone() === "UTC" ? "Times are in UTC." : "Times are those of " + zone() + ". Their titles have them in UTC.");
  if (view !== "task") document.title = view === "list" ? "Tasks" : by(view + "-title").textContent + " \u2013 Tasks";
  showFilters(parameters);
  const key = view + (parameters.task || "");
  if (key !== shownView) {
    const left = shownView;
    shownView = key;
    problem("");
    selectTask(parameters.task);
    if (isMoved) moveFocus(view, left);
  }
  activate(view);
}

// The focus moves to the heading of a new view, or back to the link of the task that was left.
function moveFocus(view, left) {
  const id = left && left.startsWith("task") && left.slice(4);
  const row = view === "list" && id && tasks.rows.get(id);
  (row ? row.tr.querySelector("a") : by(view + "-title")).focus();
}

// The first requests find out what the service has, whatever is shown.
function activate(view) {
  listPoll.setActive(view === "list");
  taskPoll.setActive(view === "task");
  queuesPoll.setActive(view === "queues");
  const isKnown = service.operations !== null && service.sequences !== null;
  const needsSummary = service.summary !== false && (view === "list" || view === "queues" || !isKnown);
  for (const [poll, isNeeded] of [[summaryPoll, needsSummary], [sequencesPoll, view === "sequences" || !isKnown]]) {
    if (poll.isActive !== isNeeded) poll.setActive(isNeeded);
  }
}

async function signIn() {
  if (token) {
    setToken("");
    return location.reload();
  }
  const value = await ask({
    title: "Sign in with a token", text: "This tab keeps the token until it is closed, and sends it as a bearer token with each request.",
    yes: "Sign in", field: "Token", type: "password",
    check: text => /^[\x21-\x7e]+$/.test(text.trim().replace(/^bearer\s+/i, "")) ? "" : "A token consists of letters, digits and signs, without spaces.",
  });
  if (!value) return;
  setToken(value.trim().replace(/^bearer\s+/i, ""));
  refusals.clear();
  service.operations = service.sequences = service.summary = null;
  stopStream();
  render(false);
  for (const poll of polls) poll.now();
}

function setLive(isOn) {
  isLive = isOn;
  by("live").setAttribute("aria-pressed", String(isOn));
  if (!isOn) stopStream();
  for (const poll of polls) if (isOn) poll.now(); else poll.stop();
}

document.addEventListener("click", event => {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  if (link.href === location.href) return;
  history.pushState(null, "", link.href);
  render(true);
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) stopStream();
  for (const poll of polls) if (document.hidden) poll.stop(); else poll.now();
});
window.addEventListener("popstate", () => render(true));
by("live").addEventListener("click", () => setLive(!isLive));
by("sign-in").addEventListener("click", signIn);
by("note").querySelector("button").addEventListener("click", () => note(""));
by("read-only").hidden = !isReadOnly;
setInterval(() => {
  if (document.hidden) return;
  if (!by("list").hidden) tasks.refresh();
  if (!by("task").hidden && shownTask) showFields(shownTask);
  if (!by("sequences").hidden) sequences.refresh();
}, 1000);
for (const element of document.querySelectorAll("[data-needs]")) element.hidden = true;
render(false);
