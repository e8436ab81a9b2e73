// What can be done with tasks, one by one or all that match a filter.

const STATES = ["queued", "running", "succeeded", "failed", "cancelled", "timed_out", "lost"];
const isFinal = task => task.state !== "queued" && task.state !== "running";

// `from`: the states in which an action is offered. `bulk`: those that are changed together if no
// state was chosen. Cancelled tasks were meant to end, so they are retried only if chosen. All but
// `cancel` are for jobs of the queue.
const ACTIONS = {
  cancel: { verb: "Cancel", past: "cancelled", from: ["queued", "running"], bulk: ["queued", "running"] },
  retry: { verb: "Retry", past: "retried", from: ["failed", "timed_out", "cancelled"], bulk: ["failed", "timed_out"] },
  discard: { verb: "Discard", past: "discarded", from: ["queued"], bulk: ["queued"], isConfirmed: true },
  move: { verb: "Change due time", past: "moved", from: ["queued"] },
};

// What the service has. `null`: not known yet. `summary` is `false` if it was denied.
const service = { operations: null, sequences: null, summary: null };

// Actions that the service has refused for good, with its reason.
const refusals = new Map();

function refuse(key, error) {
  if (![403, 405, 501].includes(error.status)) return;
  if (refusals.size > 1000) refusals.clear();
  refusals.set(key, error.detail);
}

function isOffered(action, task) {
  const isJob = service.operations === true && task.queue !== undefined;
  return !isReadOnly && ACTIONS[action].from.includes(task.state) && (action === "cancel" || isJob);
}

// Shows or hides the button of an action. If it has the focus and is hidden, `refuge` gets the
// focus.
function showAction(button, action, task, refuge) {
  const isHidden = !isOffered(action, task);
  if (isHidden && document.activeElement === button) refuge.focus();
  button.hidden = isHidden;
  button.setAttribute("aria-label", ACTIONS[action].verb + " " + shortName(task));
  const isRequested = action === "cancel" && Boolean(task.cancel_requested_at);
  disable(button, button.isBusy || (isRequested && "Cancellation was requested") || refusals.get(action + task.id));
}

// Runs the action of a button and reports how it ended. `onChange` gets the new status.
async function act(action, task, button, onChange) {
  const { verb, past, isConfirmed } = ACTIONS[action];
  const name = shortName(task);
  const due_at = action === "move" ? await askDueTime(task) : null;
  if (action === "move" && !due_at) return;
  if (isConfirmed && !await ask({ title: verb + " " + name + "?", text: "It will not run, and counts as failed.", yes: verb })) return;
  button.isBusy = true;
  disable(button, true);
  try {
    const changed = action === "move" ? await send("PATCH", task.id, { body: { due_at } })
      : action === "cancel" ? await send("DELETE", task.id) : await send("POST", task.id + "/" + action);
    button.isBusy = false;
    if (action === "cancel") note(isFinal(changed) ? name + " is " + words(changed.state) + "." : "Cancellation of " + name + " was requested.");
    else if (action === "move") note(name + " is due at " + local(changed.due_at || due_at) + ".");
    else note(name + " was " + past + ".");
    onChange(changed);
  } catch (error) {
    button.isBusy = false;
    refuse(action + task.id, error);
    disable(button, refusals.get(action + task.id));
    note(name + " could not be " + past + " (" + error.message + ").", true);
  }
}

async function askDueTime(task) {
  const value = await ask({
    title: "Change the due time of " + shortName(task),
    text: "The job starts then, or as soon as a worker is free. A time in the past starts it now. Zone: " + zone() + ".",
    yes: "Change", field: "Due time", type: "datetime-local", value: local(task.due_at || Date.now()).replace(" ", "T"),
    check: text => Number.isNaN(Date.parse(text)) ? "Enter a date and a time." : "",
  });
  return value && new Date(value).toISOString().replace(".000Z", "Z");
}

const BULK_TIMEOUT = 120000;
let isBulkStopped = false, isBulkRunning = false;

const MAX_CHANGED = 1000;

// Returns the id after which a list begins with the task `id`. The last digit changes most often.
function before(id) {
  const digits = "0123456789abcdefghjkmnpqrstvwxyz";
  const end = id.replace(/z*$/, "");
  return end && end.slice(0, -1) + digits[digits.indexOf(end.at(-1)) + 1] + "0".repeat(id.length - end.length);
}

// Returns how many tasks match, whether that is exact, and the id after which the newest of them
// is. Tasks that are added later are not among them. A page of the list has the exact number. If
// they are more, the summary may have it for filters by state, name and queue, as it was some
// seconds ago. `total` is 0 if it is not known.
async function count(filter) {
  const list = await send("GET", "?" + new URLSearchParams({ ...filter, limit: String(MAX_CHANGED) }));
  const found = list.tasks.length, after = found ? before(list.tasks[0].id) : list.next;
  if (!list.next) return { total: found, isExact: true, found, after };
  let total = 0;
  if (service.summary !== false && !["owner", "text", "river_id"].some(key => filter[key])) {
    try {
      const summary = await send("GET", "summary");
      const groups = summary.groups.filter(group => (!filter.name || group.name === filter.name) && (!filter.queue || group.queue === filter.queue));
      const counts = filter.name || filter.queue ? groups.map(group => group.states) : [summary.states];
      if (summary.is_complete !== false) for (const states of counts) for (const state of filter.state.split(",")) total += states[state] || 0;
    } catch (error) {
      if (error.status === 403) service.summary = false;
    }
  }
  return { total: total > found ? total : 0, isExact: false, found, after };
}

// Changes all tasks that match the filter, after a confirmation that says how many they are. It
// changes no more than that number, and no task that is newer than the confirmation.
async function actOnAll(action, filter, onChange) {
  const { verb, past, bulk } = ACTIONS[action];
  const chosen = filter.state ? filter.state.split(",") : bulk;
  const states = chosen.filter(state => ACTIONS[action].from.includes(state));
  if (!states.length) return note("No task that is " + chosen.map(words).join(" or ") + " can be " + past + ".", true);
  const changed = { ...filter, state: states.join(",") };
  if (isBulkRunning) return note("Another operation is running.", true);
  isBulkRunning = true;
  isBulkStopped = false;
  let done = 0;
  try {
    const { total, isExact, found, after: first } = await count(changed);
    if (isExact && !total) return note("No task that is " + states.map(words).join(" or ") + " matches.");
    const limits = Object.entries({ ...changed, state: states.map(words).join(", ") }).map(([key, value]) => key + " " + cut(visible(value), 80));
    const most = total || MAX_CHANGED;
    const about = isExact ? "" : total ? "about " : "up to ";
    const more = found ? "More than " + number.format(found) + " match" : "Older tasks may match";
    const isConfirmed = await ask({
      title: verb + " " + about + plural(most, "task") + "?",
      text: (total ? "" : more + ", and " + number.format(MAX_CHANGED) + " are changed at a time. ") + "Filter: " + limits.join("; ") + "." +
        (action === "cancel" ? "" : " Only jobs are changed."),
      yes: verb + " " + about + number.format(most),
    });
    if (!isConfirmed) return;
    by("stop").hidden = false;
    for (let after = first, remaining = true; remaining && !isBulkStopped && done < most;) {
      const limit = Math.min(most - done, MAX_CHANGED);
      const response = await send("POST", "bulk", { body: { action, filter: changed, after, limit }, timeout: BULK_TIMEOUT });
      done += response.changed;
      after = response.after;
      remaining = response.remaining && Boolean(after);
      note(plural(done, "task") + " " + (done === 1 ? "was " : "were ") + past + (remaining ? ", and more match." : "."));
      onChange();
    }
  } catch (error) {
    note((done ? plural(done, "task") + " " + past + ", then the operation failed" : "The tasks could not be " + past) + " (" + error.message + ").", true);
  } finally {
    isBulkRunning = false;
    if (document.activeElement === by("stop")) by("bulk").querySelector("button").focus();
    by("stop").hidden = true;
  }
}
