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

// What the service has. `null`: not known yet.
const service = { operations: null, sequences: null };

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

// Returns how many tasks match, and whether that is exact. The summary has the numbers for filters
// by state, name and queue. Otherwise the number is that of one page of the list.
async function count(filter) {
  const states = filter.state.split(",");
  const sum = counts => states.reduce((total, state) => total + (counts[state] || 0), 0);
  if (!filter.owner && !filter.text) {
    const summary = await send("GET", "summary");
    const groups = summary.groups.filter(group => (!filter.name || group.name === filter.name) && (!filter.queue || group.queue === filter.queue));
    const total = filter.name || filter.queue ? groups.reduce((total, group) => total + sum(group.states), 0) : sum(summary.states);
    if (total && summary.is_complete !== false) return { total, isExact: true };
  }
  const list = await send("GET", "?" + new URLSearchParams({ ...filter, limit: "1000" }));
  return { total: list.tasks.length, isExact: !list.next };
}

// Changes all tasks that match the filter, after a confirmation that says how many they are. It
// stops after that number, so a job that fails again at once is not retried forever.
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
    const { total, isExact } = await count(changed);
    if (!total) return note("No task that is " + states.map(words).join(" or ") + " matches.");
    const limits = Object.entries({ ...changed, state: states.map(words).join(", ") }).map(([key, value]) => key + " " + cut(visible(value), 80));
    const isConfirmed = await ask({
      title: verb + " " + (isExact ? plural(total, "task") : "up to 1,000 tasks") + "?",
      text: (isExact ? "" : "More than " + number.format(total) + " match, and 1,000 are changed at a time. ") + "Filter: " + limits.join("; ") + "." +
        (action === "cancel" ? "" : " Only jobs are changed."),
      yes: verb + " " + (isExact ? number.format(total) : "up to 1,000"),
    });
    if (!isConfirmed) return;
    by("stop").hidden = false;
    for (let after, remaining = true; remaining && !isBulkStopped && (done === 0 || (isExact && done < total));) {
      const response = await send("POST", "bulk", { body: { action, filter: changed, after }, timeout: BULK_TIMEOUT });
      done += response.changed;
      after = response.after;
      remaining = response.remaining && (response.changed > 0 || Boolean(after));
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
