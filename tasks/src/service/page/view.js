// Elements, texts and times. Text from tasks is only ever set as text content.

const by = id => document.getElementById(id);

function make(tag, kind, text) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}

function makeButton(kind, text, onClick) {
  const button = make("button", kind, text);
  button.type = "button";
  button.addEventListener("click", () => { if (!isDisabled(button)) onClick(button); });
  return button;
}

// A disabled button keeps the focus and tells its reason, unlike one with the attribute `disabled`.
const isDisabled = button => button.getAttribute("aria-disabled") === "true";

function disable(button, reason) {
  button.setAttribute("aria-disabled", String(Boolean(reason)));
  if (reason && reason !== true) button.title = reason; else button.removeAttribute("title");
}

// Changes the text only if it differs, so that a selection stays.
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Shows control characters, and those that change the direction of text, as their code points.
function visible(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
    letter => "\\u{" + letter.codePointAt(0).toString(16) + "}");
}

function cut(text, length) {
  const letters = Array.from(String(text).slice(0, 2 * length + 2));
  return letters.length > length ? letters.slice(0, length - 1).join("") + "\u2026" : letters.join("");
}

const shortName = task => cut(visible(task.name), 80);
const words = text => String(text).replaceAll("_", " ");
const number = new Intl.NumberFormat("en");
const plural = (count, noun) => number.format(count) + " " + noun + (count === 1 ? "" : "s");

const MAX_SHOWN = 256 * 1024;

// Returns JSON for people. Deep nesting would make the indentation far larger than the value.
function pretty(value) {
  let text;
  try {
    text = JSON.stringify(value, null, depth(value) > 50 ? 0 : 2);
  } catch {
    return "This value cannot be shown. Read it with a request to the service.";
  }
  text = visible(text);
  return text.length > MAX_SHOWN ? text.slice(0, MAX_SHOWN) + "\n\u2026 " + number.format(text.length) + " characters in all" : text;
}

function depth(value) {
  let level = [value], count = 0;
  while (level.length && count <= 50) {
    level = level.flatMap(item => item && typeof item === "object" ? Object.values(item) : []);
    count += 1;
  }
  return count;
}

function duration(seconds) {
  if (!Number.isFinite(seconds)) return "\u2013";
  if (seconds < 1) return Math.round(seconds * 1000) + " ms";
  if (seconds < 10 && !Number.isInteger(seconds)) return (Math.floor(seconds * 10) / 10).toFixed(1) + " s";
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const index = units.findIndex(([unit]) => seconds >= unit);
  const [unit, word] = units[index];
  const text = Math.floor(seconds / unit) + " " + word;
  if (index === 3 || seconds >= 10 * unit) return text;
  const [nextUnit, nextWord] = units[index + 1];
  const rest = Math.floor((seconds % unit) / nextUnit);
  return rest ? text + " " + rest + " " + nextWord : text;
}

function ago(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  if (!Number.isFinite(seconds)) return "\u2013";
  if (seconds < 0) return seconds > -1 ? "now" : "in " + duration(Math.floor(-seconds));
  return seconds < 1 ? "now" : duration(Math.floor(seconds)) + " ago";
}

const two = value => String(value).padStart(2, "0");

// Returns a time in the zone of the browser. The title of its element is the time in UTC.
function local(time) {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return String(time);
  return date.getFullYear() + "-" + two(date.getMonth() + 1) + "-" + two(date.getDate()) + " " +
    two(date.getHours()) + ":" + two(date.getMinutes()) + ":" + two(date.getSeconds());
}

const zone = () => Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";

function putTime(element, time, text) {
  put(element, text);
  element.dateTime = time;
  element.title = time + " (UTC), " + local(time) + " (" + zone() + ")";
}

// Shows a message about an action. Errors stay until they are closed, others for ten seconds.
let noteTimer = 0;
function note(text, isBad) {
  clearTimeout(noteTimer);
  by("note").classList.toggle("bad", Boolean(isBad));
  by("note").classList.toggle("nothing", !text);
  by("note").querySelector("button").hidden = !text;
  put(by("note").querySelector("p"), text);
  if (text && !isBad) noteTimer = setTimeout(() => note(""), 10000);
}

// Shows why the present view cannot be loaded. An empty text removes the message.
function problem(text, canSignIn) {
  if (by("problem").dataset.text === text) return;
  by("problem").dataset.text = text;
  by("problem").textContent = text;
  if (canSignIn) by("problem").append(" ", makeButton("", "Sign in with a token", signIn));
}

// Asks for a confirmation or a value. Resolves to `null` if it is declined. `check` returns what is
// wrong with a value.
function ask({ title, text, yes, field, value = "", type = "text", check = () => "" }) {
  const dialog = by("dialog"), form = dialog.querySelector("form"), input = dialog.querySelector("input");
  const error = dialog.querySelector(".error");
  put(by("dialog-title"), title);
  put(by("dialog-text"), text);
  put(dialog.querySelector(".yes"), yes);
  put(dialog.querySelector("label span"), field || "");
  put(error, "");
  dialog.querySelector("label").hidden = !field;
  input.type = type;
  input.step = type === "datetime-local" ? "1" : "any";
  input.value = value;
  return new Promise(resolve => {
    let answer = null;
    form.onsubmit = event => {
      event.preventDefault();
      const wrong = field ? check(input.value) : "";
      put(error, wrong);
      if (wrong) return input.focus();
      answer = field ? input.value : true;
      dialog.close();
    };
    dialog.querySelector(".no").onclick = () => dialog.close();
    dialog.onclose = () => {
      input.value = ""; // may be a token
      resolve(answer);
    };
    dialog.showModal();
    (field ? input : dialog.querySelector(".no")).focus();
  });
}

const MAX_ROWS = 500;

// A table with one row per key. Rows are kept and changed in place, so that the focus stays where
// it is after a refresh. A row that has the focus stays until the focus leaves, even if it is no
// longer listed.
class Table {
  // `makeRow` gets the cells by their column and returns a function that shows an item in them.
  constructor(element, columns, makeRow) {
    this.columns = columns;
    this.makeRow = makeRow;
    this.rows = new Map();
    this.empty = element.parentElement.querySelector(".empty");
    const head = make("tr");
    head.setAttribute("role", "row");
    for (const [key, title] of columns) {
      const cell = make("th", key);
      cell.scope = "col";
      cell.setAttribute("role", "columnheader");
      cell.append(make("span", title === "Actions" ? "unseen" : "", title));
      head.append(cell);
    }
    this.body = make("tbody");
    const top = make("thead");
    top.append(head);
    for (const group of [top, this.body]) group.setAttribute("role", "rowgroup");
    element.append(top, this.body);
  }

  show(items, keyOf, textIfEmpty) {
    const shown = items.slice(0, MAX_ROWS);
    const listed = new Set(shown.map(keyOf));
    for (const [key, row] of this.rows) {
      if (listed.has(key)) continue;
      row.tr.classList.add("gone");
      row.tr.title = "No longer in this list";
      if (row.tr.contains(document.activeElement)) continue;
      row.tr.remove();
      this.rows.delete(key);
    }
    let next = this.body.firstElementChild;
    for (const item of shown) {
      const key = keyOf(item);
      let row = this.rows.get(key);
      if (!row) this.rows.set(key, row = this.add(item));
      row.tr.classList.remove("gone");
      row.tr.removeAttribute("title");
      row.show(row.item = item);
      while (next && next.classList.contains("gone")) next = next.nextElementSibling;
      if (next === row.tr) next = next.nextElementSibling; else this.body.insertBefore(row.tr, next);
    }
    const more = items.length - shown.length;
    put(this.empty, more > 0 ? number.format(more) + " more are not shown." : textIfEmpty);
    this.empty.hidden = items.length > 0 && more <= 0;
  }

  // Shows the items again, as time has passed or something else has changed.
  refresh() {
    for (const row of this.rows.values()) row.show(row.item);
  }

  add(item) {
    const tr = make("tr"), cells = {};
    tr.setAttribute("role", "row");
    for (const [key, title] of this.columns) {
      cells[key] = make("td", key);
      cells[key].setAttribute("role", "cell");
      cells[key].dataset.label = title;
      tr.append(cells[key]);
    }
    return { tr, show: this.makeRow(cells, item, tr) };
  }
}
