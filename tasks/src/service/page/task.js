// One task: all its fields, its events while they happen, and what can be done with it.

const MAX_EVENTS = 50;
const LABELS = {
  id: "ID", state: "State", attempt: "Attempts", max_attempts: "Maximum of attempts", queue: "Queue", owner: "Owner", parent: "Parent", river_id: "River ID",
  message: "Message", reason: "Reason", created_at: "Created", due_at: "Due", started_at: "Started", finished_at: "Finished",
  cancel_requested_at: "Cancel requested",
};
const SHOWN_ELSEWHERE = ["name", "progress", "result", "error"];

const showTaskWork = makeWork(by("task-work"));
const fields = new Map();
let shownTask = null, stream = null, lastEventId = "", streamed = [], flushTimer = 0, changes = 0;

const taskActions = Object.keys(ACTIONS).map(action =>
  [action, makeButton(action, ACTIONS[action].verb, button => act(action, shownTask, button, changed => {
    changes += 1;
    showTask(changed);
  }))]);
by("task-actions").append(...taskActions.map(([, button]) => button));

function showTask(task) {
  shownTask = task;
  put(by("task-title"), visible(task.name));
  document.title = shortName(task) + " \u2013 Tasks";
  showState(by("task-state"), task);
  showTaskWork({ ...task, error: null, reason: null });
  for (const [action, button] of taskActions) showAction(button, action, task, by("task-title"));
  showFields(task);
  const { error, result } = task;
  by("task-error").hidden = !error;
  if (error) put(by("task-error").querySelector(".error"), visible(error.class + ": " + error.message));
  by("task-error").querySelector("pre").hidden = !error || error.detail === undefined;
  if (error && error.detail !== undefined) put(by("task-error").querySelector("pre"), pretty(error.detail));
  by("task-result").hidden = result === undefined;
  if (result !== undefined) put(by("task-result").querySelector("pre"), pretty(result));
  const isComplete = isFinal(task) && lastEventId; // the stream of a final task has its past events
  if (isComplete || !isLive || document.hidden) stopStream(); else if (!stream && !refusals.has("events" + task.id)) startStream(task.id);
}

function showFields(task) {
  const keys = Object.keys(LABELS).concat(Object.keys(task).slice(0, 100)).filter(key => task[key] !== undefined && task[key] !== null);
  const listed = new Set(keys.filter(key => !SHOWN_ELSEWHERE.includes(key)));
  for (const [key, { pair }] of fields) if (!listed.has(key)) { pair.remove(); fields.delete(key); }
  let before = null;
  for (const key of listed) {
    if (!fields.has(key)) {
      const pair = make("div"), value = make("dd");
      pair.append(make("dt", "", LABELS[key] || visible(words(key))), value);
      fields.set(key, { pair, value });
    }
    const { pair, value } = fields.get(key);
    showField(value, key, task[key], task);
    const place = before ? before.nextElementSibling : by("fields").firstElementChild;
    if (place !== pair) by("fields").insertBefore(pair, place);
    before = pair;
  }
}

function showField(element, key, value, task) {
  const kind = key === "parent" && ID.test(value) ? "a" : key.endsWith("_at") && !Number.isNaN(Date.parse(value)) ? "time" : typeof value === "object" ? "pre" : "span";
  let child = element.firstElementChild;
  if (!child || child.localName !== kind) element.replaceChildren(child = make(kind));
  if (kind === "a") {
    child.href = linkTo({ task: value });
    put(child, value);
  } else if (kind === "time") {
    const run = key === (task.finished_at ? "finished_at" : "started_at") ? took(task) : "";
    putTime(child, value, local(value) + " (" + ago(value) + (run ? ", " + run : "") + ")");
  } else {
    put(child, kind === "pre" ? pretty(value) : visible(key === "state" || key === "reason" ? words(value) : value));
  }
}

function startStream(id) {
  const controller = stream = new AbortController();
  const say = text => { if (stream === controller) put(by("stream"), text); };
  say("Connecting \u2026");
  follow(id, controller.signal, lastEventId, {
    onOpen: isOpen => {
      controller.isOpen = isOpen;
      if (isOpen) say("Live.");
    },
    onProblem: error => {
      refuse("events" + id, error);
      say("The events cannot be read (" + error.message + ").");
    },
    onEvent: (name, task, eventId) => {
      if (stream !== controller) return;
      changes += 1;
      lastEventId = eventId;
      const known = { queued: task.attempt === 0 && task.created_at, started: task.started_at, finished: task.finished_at };
      streamed.push({ name, task, time: known[name] || new Date().toISOString() });
      if (streamed.length > MAX_EVENTS) streamed.shift();
      if (!flushTimer) flushTimer = setTimeout(flush, 100);
    },
  }).finally(() => { if (stream === controller) stream = null; });
}

function stopStream() {
  if (stream) stream.abort();
  stream = null;
  put(by("stream"), !shownTask || isFinal(shownTask) ? "No further events." : isLive ? "Paused." : "Live updates are off.");
}

// Shows the events of the last 100 ms together. A fast stream changes the page ten times a second.
function flush() {
  clearTimeout(flushTimer);
  flushTimer = 0;
  const events = streamed;
  streamed = [];
  if (!events.length) return;
  for (const { name, task, time } of events) {
    const item = make("li"), when = make("time");
    putTime(when, time, local(time).slice(11));
    const progress = typeof task.progress === "number" ? Math.floor(task.progress * 100) + " %" : "";
    const text = name === "finished" ? words(task.state) : [progress, cut(visible(task.message || ""), 200)].filter(Boolean).join(", ");
    item.append(when, " ", make("strong", "", visible(name)), text ? " " + text : task.attempt > 1 && name === "started" ? " attempt " + number.format(task.attempt) : "");
    by("events").prepend(item);
  }
  while (by("events").childElementCount > MAX_EVENTS) by("events").lastElementChild.remove();
  showTask({ ...lasting(shownTask), ...events.at(-1).task });
}

// The events have what changes. Fields that they do not have stay.
function lasting(task) {
  const changing = ["progress", "message", "due_at", "started_at", "finished_at", "cancel_requested_at", "reason", "result", "error"];
  return Object.fromEntries(Object.entries(task).filter(([key]) => !changing.includes(key)));
}

// The stream has all changes of a running task. An operation may change another one without an
// event.
const taskPoll = makePoll(5000, async signal => {
  const { task: id } = parse();
  if (stream && stream.isOpen && shownTask && shownTask.id === id && shownTask.state === "running") return;
  const before = changes;
  try {
    if (!ID.test(id)) throw new Problem(404, "this is not the ID of a task");
    const task = await send("GET", id, { signal });
    problem("");
    by("task").classList.remove("unknown");
    if (before === changes) showTask(task); // otherwise an event is newer
  } catch (error) {
    if (signal.aborted) throw error;
    if (!shownTask) by("task").classList.add("unknown");
    problem("The task could not be loaded (" + error.message + ").", error.status === 401 || error.status === 403);
    throw error;
  }
});

// Shows another task, or none.
function selectTask(id) {
  if (shownTask && shownTask.id === id) return;
  shownTask = null;
  stopStream();
  streamed = [];
  lastEventId = "";
  put(by("stream"), "");
  put(by("task-title"), id ? "Task " + cut(visible(id), 40) : "");
  by("events").replaceChildren();
  by("task").classList.add("unknown");
}
