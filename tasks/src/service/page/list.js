// The list of tasks: filters, rows and pages.

const FILTERS = ["state", "name", "queue", "owner", "text", "river_id"];
const NO_FILTER = { ...Object.fromEntries(FILTERS.map(key => [key, ""])), after: "" };

// Progress, message and error of a task.
function makeWork(parent) {
  const line = make("div", "work"), bar = make("progress"), percent = make("span");
  const message = make("div", "message"), error = make("div", "error");
  bar.max = 1;
  line.append(bar, percent);
  parent.append(line, message, error);
  return task => {
    const hasProgress = typeof task.progress === "number";
    const hasBar = hasProgress || task.state === "running";
    line.hidden = !hasBar;
    if (hasProgress) bar.value = task.progress; else bar.removeAttribute("value");
    bar.setAttribute("aria-label", "Progress of " + shortName(task));
    put(percent, hasProgress ? Math.floor(task.progress * 100) + " %" : "");
    put(message, visible([task.message, task.reason && "Reason: " + words(task.reason) + "."].filter(Boolean).join(" ")));
    put(error, task.error ? visible(task.error.class + ": " + task.error.message) : "");
    parent.classList.toggle("nothing", !hasBar && !message.textContent && !error.textContent);
  };
}

function showState(chip, task) {
  chip.className = "chip " + (STATES.includes(task.state) ? task.state : "");
  put(chip, task.cancel_requested_at && task.state === "running" ? "cancelling" : words(task.state));
}

// Says how long a task waits, runs or ran.
function took(task) {
  const since = (from, to) => duration(Math.max(0, ((to ? Date.parse(to) : Date.now()) - Date.parse(from)) / 1000));
  if (task.state === "queued") return task.due_at && Date.parse(task.due_at) > Date.now() ? "due " + ago(task.due_at) : "";
  if (task.state === "running") return task.started_at ? "runs " + since(task.started_at) : "";
  return task.started_at && task.finished_at ? "took " + since(task.started_at, task.finished_at) : "";
}

const tasks = new Table(by("tasks"), [["task", "Task"], ["state", "State"], ["work-cell", "Progress"], ["time", "Created"], ["act", "Actions"]], (cells, first) => {
  const link = make("a", "name"), origin = make("span", "origin"), chip = make("span", "chip");
  const time = make("time"), run = make("span", "quiet"), buttons = make("div", "buttons");
  cells.task.append(link, make("span", "id", first.id), origin);
  cells.state.append(chip);
  const showWork = makeWork(cells["work-cell"]);
  cells.time.append(time, run);
  let task = first;
  const onChange = changed => {
    show({ ...task, ...changed });
    listPoll.now();
  };
  const actions = ["cancel", "retry"].map(action => [action, makeButton(action, ACTIONS[action].verb, button => act(action, task, button, onChange))]);
  buttons.append(...actions.map(([, button]) => button));
  cells.act.append(buttons);
  const show = newest => {
    task = newest;
    link.href = linkTo({ task: task.id });
    put(link, visible(task.name));
    put(origin, visible([task.queue && "queue " + task.queue, task.owner && "owner " + task.owner].filter(Boolean).join(", ")));
    showState(chip, task);
    showWork(task);
    putTime(time, task.created_at, ago(task.created_at));
    put(run, took(task));
    for (const [action, button] of actions) showAction(button, action, task, link);
    cells.act.classList.toggle("nothing", actions.every(([, button]) => button.hidden));
  };
  return show;
});

// Returns the filter of the address, without what the service does not know.
function filterOf(parameters) {
  const known = service.operations ? FILTERS : ["state", "name"];
  return Object.fromEntries(known.filter(key => parameters[key]).map(key => [key, parameters[key]]));
}

const PAGE_SIZE = 50, MAX_REQUESTS = 5;
let next = "";

// Reads one page. The service reads a limited number of records for each request, so that a
// response may have fewer tasks than were asked for, or none, and name the next page.
async function readPage(parameters, signal) {
  const found = [];
  let after = parameters.after || "";
  for (let requests = 0; requests === 0 || (after && found.length < PAGE_SIZE && requests < MAX_REQUESTS); requests += 1) {
    const query = new URLSearchParams({ ...filterOf(parameters), limit: String(PAGE_SIZE - found.length) });
    if (after) query.set("after", after);
    const list = await send("GET", "?" + query, { signal });
    found.push(...list.tasks);
    after = list.next || "";
  }
  return { found, after };
}

const listPoll = makePoll(1000, async signal => {
  const parameters = parse();
  try {
    const { found, after } = await readPage(parameters, signal);
    const isFiltered = FILTERS.some(key => parameters[key]);
    tasks.show(found, task => task.id, after ? "No tasks match among the newer ones. Older ones may." : isFiltered ? "No tasks match." : "No tasks.");
    next = after;
    showPages(parameters);
    problem("");
  } catch (error) {
    if (!signal.aborted) problem("The list could not be loaded (" + error.message + "). It is tried again.", error.status === 401 || error.status === 403);
    throw error;
  }
});

function showPages(parameters) {
  const buttons = { older: next, newest: parameters.after, newer: parameters.after && history.state && history.state.isOlder };
  const focused = document.activeElement;
  for (const [id, isShown] of Object.entries(buttons)) by(id).hidden = !isShown;
  if (focused && focused.hidden) by("list-title").focus();
}

const stateButtons = STATES.map(state => {
  const button = makeButton("chip " + state, words(state), () => {
    const chosen = new Set((parse().state || "").split(",").filter(Boolean));
    if (!chosen.delete(state)) chosen.add(state);
    go({ state: STATES.filter(state => chosen.has(state)).join(","), after: "" });
  });
  const total = make("span", "count");
  button.append(" ", total);
  by("states").append(button);
  return { state, button, total };
});

function showFilters(parameters) {
  const chosen = (parameters.state || "").split(",");
  for (const { state, button } of stateButtons) button.setAttribute("aria-pressed", String(chosen.includes(state)));
  for (const key of FILTERS.slice(1)) if (document.activeElement !== by(key)) by(key).value = parameters[key] || "";
  by("clear").hidden = !FILTERS.some(key => parameters[key]);
  by("bulk").hidden = isReadOnly || !service.operations || Boolean(parameters.river_id);
}

// Shows how many tasks there are. The service counts the newest ones only, if there are too many.
function showCounts(states, isComplete) {
  for (const { state, total } of stateButtons) put(total, states ? number.format(states[state] || 0) + (isComplete ? "" : "+") : "");
}

// An address for each letter would fill the history, so typing replaces the present one.
let typing = 0;
const ID = /^[01][0-9a-hjkmnp-tv-z]{35}$/;

function applyFilters() {
  clearTimeout(typing);
  if (by("list").hidden) return;
  const values = Object.fromEntries(FILTERS.slice(1).map(key => [key, by(key).value.trim()]));
  if (/[^0-9]/.test(values.river_id)) return note("A River ID is a number.", true);
  go({ ...values, after: "" }, true);
}

by("filters").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(applyFilters, 300);
});
by("filters").addEventListener("submit", event => {
  event.preventDefault();
  const text = by("text").value.trim();
  if (ID.test(text)) go({ task: text }); else applyFilters();
});
by("clear").addEventListener("click", () => {
  by("text").focus();
  for (const key of FILTERS.slice(1)) by(key).value = "";
  go(NO_FILTER);
});
by("older").addEventListener("click", () => go({ after: next }, false, { isOlder: true }));
by("newer").addEventListener("click", () => history.back());
by("newest").addEventListener("click", () => go({ after: "" }));
by("stop").addEventListener("click", () => { isBulkStopped = true; });
for (const button of document.querySelectorAll("[data-bulk]")) {
  button.addEventListener("click", () => actOnAll(button.dataset.bulk, filterOf(parse()), () => listPoll.now()));
}
