// Queues, kinds and their summary, and blocked sequences.

const summaryPoll = makePoll(5000, async signal => {
  try {
    const summary = await send("GET", "summary", { signal });
    setService("operations", true);
    showCounts(summary.states, summary.is_complete !== false);
    showGroups(summary.groups);
    showNames(summary.groups);
  } catch (error) {
    if (signal.aborted) throw error;
    if ([404, 405].includes(error.status)) setService("operations", false);
    if ([403, 501].includes(error.status)) setService("operations", true);
    if (error.status === 403) {
      service.summary = false;
      summaryPoll.isActive = false;
    }
    showCounts(null);
    groups.show([], () => "", "The summary could not be loaded (" + error.message + ").");
    throw error;
  }
});

// Offers the names of the summary in the filters.
function showNames(list) {
  for (const [id, key] of [["names", "name"], ["queue-names", "queue"]]) {
    const names = [...new Set(list.slice(0, MAX_ROWS).map(group => group[key]).filter(Boolean))].sort();
    if (by(id).dataset.names === names.join("\n")) continue;
    by(id).dataset.names = names.join("\n");
    by(id).replaceChildren(...names.map(name => Object.assign(make("option"), { value: name })));
  }
}

const percentiles = values => values ? duration(values.p50) + " / " + duration(values.p99) : "\u2013";
const GROUP_COLUMNS = [
  ["task", "Kind"], ["queue", "Queue"], ["queued", "Queued"], ["running", "Running"], ["failed", "Failed"], ["oldest", "Oldest waits"],
  ["wait", "Wait p50 / p99"], ["run", "Run p50 / p99"],
];

const groups = new Table(by("groups"), GROUP_COLUMNS, cells => {
  const kind = make("a", "name"), queue = make("span"), oldest = make("span"), wait = make("span"), run = make("span");
  const counts = [["queued"], ["running"], ["failed", "timed_out", "lost"]].map(states => ({ states, link: make("a") }));
  cells.task.append(kind);
  for (const [column, element] of Object.entries({ queue, oldest, wait, run })) cells[column].append(element);
  for (const { states, link } of counts) cells[states[0]].append(link);
  return group => {
    const only = state => linkTo({ ...NO_FILTER, view: "", name: group.name, queue: group.queue, state });
    kind.href = only("");
    put(kind, visible(group.name) + (group.paused ? " (paused)" : ""));
    put(queue, cut(visible(group.queue || "\u2013"), 80));
    for (const { states, link } of counts) {
      link.href = only(states.join(","));
      put(link, number.format(states.reduce((sum, state) => sum + (group.states[state] || 0), 0)));
      link.setAttribute("aria-label", link.textContent + " " + states[0] + " of " + shortName(group));
    }
    put(oldest, duration(group.oldest_queued_seconds));
    put(wait, percentiles(group.wait_seconds));
    put(run, percentiles(group.run_seconds));
  };
});

const byName = (one, other) => one.name < other.name ? -1 : one.name > other.name ? 1 : (one.queue || "") < (other.queue || "") ? -1 : 1;

function showGroups(list) {
  groups.show([...list].sort(byName), group => JSON.stringify([group.name, group.queue]), "No tasks.");
}

// A table of queues or of kinds, with a button that pauses or resumes.
function makePausable(element, path, noun) {
  return new Table(element, [["task", noun], ["state", "State"], ["act", "Actions"]], cells => {
    const name = make("span", "name"), chip = make("span");
    let entry;
    const button = makeButton("pause", "", async () => {
      const verb = entry.paused ? "resume" : "pause";
      button.isBusy = true;
      disable(button, true);
      try {
        const changed = await send("POST", path + "/" + encodeURIComponent(entry.name) + "/" + verb);
        button.isBusy = false;
        show({ ...entry, ...changed });
        note(noun + " " + shortName(entry) + " is " + (entry.paused ? "paused. Jobs that run continue." : "resumed."));
        queuesPoll.now();
      } catch (error) {
        button.isBusy = false;
        refuse(path + verb, error);
        show(entry);
        note(noun + " " + shortName(entry) + " could not be " + verb + "d (" + error.message + ").", true);
      }
    });
    const buttons = make("div", "buttons");
    buttons.append(button);
    cells.task.append(name);
    cells.state.append(chip);
    cells.act.append(buttons);
    const show = newest => {
      entry = newest;
      const verb = entry.paused ? "resume" : "pause";
      put(name, visible(entry.name));
      chip.className = "chip " + (entry.paused ? "paused" : "running");
      put(chip, entry.paused ? "paused" : "active");
      put(button, entry.paused ? "Resume" : "Pause");
      button.setAttribute("aria-label", button.textContent + " " + noun.toLowerCase() + " " + shortName(entry));
      button.hidden = isReadOnly;
      disable(button, button.isBusy || refusals.get(path + verb));
    };
    return show;
  });
}

const queues = makePausable(by("queue-table"), "queues", "Queue");
const kinds = makePausable(by("kind-table"), "kinds", "Kind");

const queuesPoll = makePoll(2000, async signal => {
  try {
    const all = await send("GET", "queues", { signal });
    queues.show([...all.queues].sort(byName), queue => queue.name, "No queues.");
    kinds.show([...all.kinds].sort(byName), kind => kind.name, "No kinds.");
  } catch (error) {
    if (signal.aborted) throw error;
    for (const table of [queues, kinds]) table.show([], () => "", "They could not be loaded (" + error.message + ").");
    throw error;
  }
});

const SEQUENCE_COLUMNS = [["task", "Sequence"], ["held", "Held by"], ["time", "Since"], ["waiting", "Waiting"], ["act", "Actions"]];

const sequences = new Table(by("sequence-table"), SEQUENCE_COLUMNS, cells => {
  const key = make("span", "name"), holder = make("a", "id"), time = make("time"), waiting = make("span");
  let sequence;
  const button = makeButton("release", "Release", async () => {
    const name = cut(visible(sequence.key), 80);
    const text = plural(sequence.waiting, "job") + (sequence.waiting === 1 ? " waits" : " wait") + ". They run in their order, without the job that failed.";
    if (!await ask({ title: "Release " + name + "?", text, yes: "Release" })) return;
    button.isBusy = true;
    disable(button, true);
    try {
      const { released } = await send("POST", "sequences/release", { body: { key: sequence.key } });
      note("Sequence " + name + " was released: " + plural(released, "job") + (released === 1 ? " waits" : " wait") + " no longer.");
    } catch (error) {
      refuse("release", error);
      note("Sequence " + name + " could not be released (" + error.message + ").", true);
    }
    button.isBusy = false;
    show(sequence);
    sequencesPoll.now();
  });
  const buttons = make("div", "buttons");
  buttons.append(button);
  cells.task.append(key);
  cells.held.append(holder);
  cells.time.append(time);
  cells.waiting.append(waiting);
  cells.act.append(buttons);
  const show = newest => {
    sequence = newest;
    put(key, visible(sequence.key));
    put(holder, cut(visible(sequence.held_by || "\u2013"), 80));
    if (ID.test(sequence.held_by)) holder.href = linkTo({ task: sequence.held_by }); else holder.removeAttribute("href");
    putTime(time, sequence.since, ago(sequence.since));
    put(waiting, number.format(sequence.waiting));
    button.setAttribute("aria-label", "Release " + cut(visible(sequence.key), 80));
    button.hidden = isReadOnly;
    disable(button, button.isBusy || refusals.get("release"));
  };
  return show;
});

const sequencesPoll = makePoll(5000, async signal => {
  try {
    const all = await send("GET", "sequences", { signal });
    setService("sequences", true);
    sequences.show(all.sequences, sequence => sequence.key, "No sequence is blocked.");
  } catch (error) {
    if (signal.aborted) throw error;
    if ([404, 405, 501].includes(error.status)) setService("sequences", false);
    if (error.status === 403) setService("sequences", true);
    sequences.show([], () => "", "They could not be loaded (" + error.message + ").");
    throw error;
  }
});
