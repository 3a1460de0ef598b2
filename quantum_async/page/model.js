// What the run was, what is shown of it, and the filter. Names and messages come from the run:
// they are only ever set as text.

const data = JSON.parse(document.getElementById("data").textContent);
const units = data.units;
const BAD = new Set(["failed", "timeout"]);
const GLYPHS = {
  completed: "✓", failed: "✗", timeout: "◔", canceled: "■", skipped: "»", running: "►", pending: "○",
};

units.forEach((unit, number) => {
  unit.number = number;
  unit.spans ??= [];
  unit.above ??= [];
  unit.below = [];
  unit.start = unit.spans.length ? unit.spans[0][0] : null;
  unit.duration = unit.spans.length ? unit.spans.at(-1)[1] - unit.start : null;
});
for (const unit of units) for (const above of unit.above) units[above].below.push(unit.number);

const length = Math.max(data.run.duration, ...ends(), 1e-6);

function* ends() {
  for (const unit of units) if (unit.spans.length) yield unit.spans.at(-1)[1];
}

/** Return a duration as people say it. */
function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value >= 100) return `${value.toFixed(0)} s`;
  if (value >= 1) return `${value.toFixed(2)} s`;
  if (value >= 1e-3) return `${(value * 1e3).toFixed(1)} ms`;
  return `${(value * 1e6).toFixed(0)} µs`;
}

/** Make an element: attributes whose name begins with "on" are listeners, children may be text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

const byId = (id) => document.getElementById(id);

/** Return how an attempt ended: all but the last failed, and the last one if a fallback had to serve. */
function attemptState(unit, attempt) {
  return attempt < unit.spans.length - 1 || unit.fallback ? "failed" : unit.state;
}

// -- the filter -----------------------------------------------------------------------------------

const SCALE = { µs: 1e-6, us: 1e-6, ms: 1e-3, s: 1, m: 60, "": 1 };

/** Return a test of one word: `state:failed`, `on:thread`, `>200ms`, `critical`, or a name. */
function word(text) {
  const low = text.toLowerCase();
  const time = /^([<>])(\d+(?:\.\d+)?)(µs|us|ms|s|m|)$/.exec(low);
  if (time) {
    const limit = time[2] * SCALE[time[3]];
    return (unit) =>
      unit.duration !== null && (time[1] === ">" ? unit.duration > limit : unit.duration < limit);
  }
  if (low.startsWith("state:")) return (unit) => unit.state.startsWith(low.slice(6));
  if (low.startsWith("on:")) return (unit) => (unit.ran_on ?? "").startsWith(low.slice(3));
  if (low === "critical") return (unit) => Boolean(unit.critical);
  if (low === "retried") return (unit) => unit.attempts > 1;
  if (low === "fallback") return (unit) => Boolean(unit.fallback);
  const name = low.startsWith("name:") ? low.slice(5) : low;
  if (!name.includes("*")) return (unit) => unit.name.toLowerCase().includes(name);
  const escaped = name.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*");
  const pattern = new RegExp(`^${escaped}$`, "s");
  return (unit) => pattern.test(unit.name.toLowerCase());
}

/** Return a test of all words of a query; a word with blanks stands in quotes. */
function matcher(query) {
  const words = query.match(/[^\s"]*"[^"]*"?|\S+/g) ?? [];
  const tests = words.map((one) => word(one.replaceAll('"', ""))).filter(Boolean);
  return (unit) => tests.every((test) => test(unit));
}

// -- what is shown --------------------------------------------------------------------------------

const view = { tab: "timeline", rows: "slots", query: "", unit: null };
const listeners = [];
let matching = new Uint8Array(units.length).fill(1);

/** Change what is shown, and tell everybody. */
function show(changes) {
  Object.assign(view, changes);
  if ("query" in changes) {
    const matches = matcher(view.query);
    matching = Uint8Array.from(units, (unit) => (matches(unit) ? 1 : 0));
  }
  for (const listener of listeners) listener(changes);
  const said = Object.entries({ ...view, unit: view.unit === null ? "" : units[view.unit].name })
    .filter(([, value]) => value)
    .map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  // The page may be a file, or a frame of a notebook that has no history.
  try { history.replaceState(null, "", `#${said.join("&")}`); } catch { /* it works without */ }
}

/** Return what the address says is to be shown. */
function fromAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  const unit = said.get("unit");
  const number = unit === null ? -1 : units.findIndex((one) => one.name === unit);
  const tab = ["timeline", "graph", "table"].includes(said.get("tab")) ? said.get("tab") : "timeline";
  return {
    tab,
    rows: said.get("rows") === "units" ? "units" : "slots",
    query: said.get("query") ?? "",
    unit: number < 0 ? null : number,
  };
}

// -- colours, for the canvases --------------------------------------------------------------------

const COLOURS = [...Object.keys(GLYPHS), "card", "line", "grid", "ink", "quiet", "accent", "hover"];
let colour = {};

/** Read the colours of the theme in use. */
function readColours() {
  const probe = document.body.appendChild(make("i"));
  for (const name of COLOURS) {
    probe.style.color = `var(--${name})`;
    colour[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}

/** Return a canvas's context, the canvas as large as its box and sharp. */
function prepared(canvas) {
  const box = canvas.parentElement.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, box.width, box.height);
  return { context, width: box.width, height: box.height };
}

/** Return a function that draws before the next frame, once however often it is asked. */
function soon(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
}

/** Show a few lines beside the pointer; nothing hides them. */
function tip(event, lines) {
  const box = byId("tip");
  box.hidden = !lines;
  if (!lines) return;
  box.replaceChildren(...lines.map((line, at) => make(at ? "div" : "b", {}, line)));
  box.style.left = `${Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8)}px`;
}

/** Return what a tip says of a unit. */
function summary(unit) {
  const lines = [unit.name, `${GLYPHS[unit.state]} ${unit.state}${unit.cause ? `: ${unit.cause}` : ""}`];
  if (unit.duration !== null) {
    const tries = unit.attempts > 1 ? `, ${unit.attempts} attempts` : "";
    lines.push(`${seconds(unit.duration)} on ${unit.ran_on}${tries}`);
  }
  if (unit.waited > 0) lines.push(`waited ${seconds(unit.waited)}`);
  if (unit.critical) lines.push("on the critical path");
  return lines;
}
