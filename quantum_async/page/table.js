// All units as rows that are only made as far as they are seen; and the story of one unit.

const HIGH = 30;
const COLUMNS = [
  ["state", "State", (unit) => unit.state],
  ["name", "Unit", (unit) => unit.name],
  ["start", "Started", (unit) => unit.start],
  ["waited", "Waited", (unit) => unit.waited],
  ["duration", "Took", (unit) => unit.duration],
  ["attempts", "Attempts", (unit) => unit.attempts],
  ["ran_on", "Ran on", (unit) => unit.ran_on],
  ["critical", "Path", (unit) => (unit.critical ? 1 : 0)],
];
const NUMBERS = new Set(["start", "waited", "duration", "attempts"]);

class Table {
  constructor(section) {
    this.body = section.querySelector(".body");
    this.spacer = section.querySelector(".spacer");
    this.sort = { by: "start", down: false };
    this.heads = COLUMNS.map(([key, title]) =>
      make("button", { type: "button", class: NUMBERS.has(key) ? "number" : null, onclick: () => this.by(key) }, title));
    section.querySelector(".head").append(...this.heads);
    this.draw = soon(() => this.drawNow());
    this.body.addEventListener("scroll", this.draw);
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) show({ unit: Number(row.dataset.unit) });
    });
    this.arrange();
  }

  by(key) {
    const again = this.sort.by === key;
    this.sort = { by: key, down: again ? !this.sort.down : NUMBERS.has(key) && key !== "start" };
    this.arrange();
    this.draw();
  }

  /** Filter and sort; what has no value is last either way. */
  arrange() {
    const value = COLUMNS.find(([key]) => key === this.sort.by)[2];
    const sign = this.sort.down ? -1 : 1;
    this.shown = units.filter((unit) => matching[unit.number]).sort((one, other) => {
      const [a, b] = [value(one) ?? null, value(other) ?? null];
      if (a === null || b === null) return (a === null) - (b === null) || one.number - other.number;
      return sign * (a < b ? -1 : a > b ? 1 : 0) || one.number - other.number;
    });
    COLUMNS.forEach(([key], at) => {
      const sorted = key === this.sort.by ? (this.sort.down ? "descending" : "ascending") : null;
      this.heads[at].textContent = COLUMNS[at][1] + (sorted ? (this.sort.down ? " ↓" : " ↑") : "");
      if (sorted) this.heads[at].setAttribute("aria-sort", sorted);
      else this.heads[at].removeAttribute("aria-sort");
    });
    this.spacer.style.height = `${this.shown.length * HIGH}px`;
    byId("statistics").textContent = statistics(this.shown);
  }

  reveal(unit) {
    const at = this.shown.indexOf(unit) * HIGH;
    const { scrollTop, clientHeight } = this.body;
    if (at >= 0 && (at < scrollTop || at > scrollTop + clientHeight - HIGH)) {
      this.body.scrollTop = at - clientHeight / 2;
    }
  }

  drawNow() {
    if (view.tab !== "table") return;
    const first = Math.max(0, Math.floor(this.body.scrollTop / HIGH) - 4);
    const last = Math.min(this.shown.length, first + Math.ceil(this.body.clientHeight / HIGH) + 9);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this.row(this.shown[at], at));
    this.body.replaceChildren(this.spacer, ...rows);
  }

  row(unit, at) {
    const chosen = view.unit === unit.number ? " chosen" : "";
    const row = make("div", { class: `row ${unit.state}${chosen}`, role: "row", "data-unit": unit.number },
      make("span", { class: "state" }, `${GLYPHS[unit.state]} ${unit.state}`),
      make("span", { class: "name", title: unit.name }, unit.name),
      ...[unit.start, unit.waited, unit.duration].map((it) => make("span", { class: "number" }, seconds(it))),
      make("span", { class: "number" }, String(unit.attempts || "")),
      make("span", {}, unit.ran_on ?? ""),
      make("span", { title: unit.critical ? "on the critical path" : "" }, unit.critical ? "◆" : ""),
      share(unit.spans));
    row.style.top = `${at * HIGH}px`;
    return row;
  }
}

/** Return what can be said of many units at once: of all, or of those that the filter leaves. */
function statistics(shown) {
  const took = shown.flatMap((unit) => (unit.duration === null ? [] : [unit.duration])).sort((a, b) => a - b);
  const count = `${shown.length.toLocaleString("en")} ${shown.length === 1 ? "unit" : "units"}`;
  if (!took.length) return count;
  const at = (share) => seconds(took[Math.min(took.length - 1, Math.floor(share * took.length))]);
  const sum = seconds(took.reduce((one, other) => one + other, 0));
  return `${count}: half took up to ${at(0.5)}, 95 % up to ${at(0.95)}, the longest ${at(1)}, all together ${sum}`;
}

/** Return a small bar that shows when in the run something was. */
function share(spans) {
  const bar = make("div", { class: "share" });
  for (const [from, to] of spans) {
    const part = bar.appendChild(make("i"));
    part.style.left = `${(100 * from) / length}%`;
    part.style.width = `${(100 * (to - from)) / length}%`;
  }
  return bar;
}

// -- the story of one unit ------------------------------------------------------------------------

const MOST_LINKS = 60;

function links(title, numbers) {
  if (!numbers.length) return [];
  const shown = numbers.slice(0, MOST_LINKS).map((number) => {
    const unit = units[number];
    return make("button", { type: "button", class: unit.state, title: unit.name, onclick: () => show({ unit: number }) },
      make("i", {}, `${GLYPHS[unit.state]} `), unit.name);
  });
  const more = numbers.length - shown.length;
  return [
    make("h3", {}, `${title} (${numbers.length})`),
    make("div", { class: "links" }, ...shown, more > 0 ? `… and ${more} more` : ""),
  ];
}

function facts(unit) {
  const share = unit.duration === null ? "" : ` (${((100 * unit.duration) / length).toFixed(0)} % of the run)`;
  return [
    ["Why", unit.cause],
    ["Ran on", unit.ran_on && unit.ran_on + (unit.pid ? `, process ${unit.pid}` : "")],
    ["Started", unit.start === null ? null : `${seconds(unit.start)} after the run began`],
    ["Waited", unit.waited > 0 ? seconds(unit.waited) + (unit.held_by ? ` for ${unit.held_by}` : "") : null],
    ["Took", unit.duration === null ? null : seconds(unit.duration) + share],
    ["Processor", unit.cpu === undefined ? null : seconds(unit.cpu)],
    ["Peak memory", unit.memory ? `${(unit.memory / 2 ** 20).toFixed(0)} MiB` : null],
    ["Declared", unit.note],
    ["Result", unit.value && unit.value + (unit.fallback ? " (its fallback)" : "")],
    ["Critical path", unit.critical ? "yes: the run ended no earlier because of it" : null],
  ].filter(([, value]) => value);
}

/** Fill the drawer with the story of a unit, or close it. */
function drawer() {
  const box = byId("drawer");
  box.hidden = view.unit === null;
  if (box.hidden) return;
  const unit = units[view.unit];
  const attempts = unit.spans.map(([from, to], at) => {
    const state = attemptState(unit, at);
    return make("div", { class: `attempt ${state}` },
      make("span", { class: "state" }, `${GLYPHS[state]} ${at + 1}`), share([[from, to]]), seconds(to - from));
  });
  const error = unit.error ?? null;
  const children = unit.children ?? [];
  box.replaceChildren(
    make("header", {},
      make("span", { class: `pill ${unit.state}` }, `${GLYPHS[unit.state]} ${unit.state}`),
      make("h2", {}, unit.name),
      make("button", { type: "button", "aria-label": "Close", onclick: () => show({ unit: null }) }, "✕")),
    make("dl", {}, ...facts(unit).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
    ...(error ? [
      make("h3", {}, unit.fallback ? "Error that the fallback stands in for" : "Error"),
      make("div", { class: "error" }, `${error.type}: ${error.message}`),
      ...(error.traceback ? [make("pre", {}, error.traceback)] : []),
    ] : []),
    ...(attempts.length ? [make("h3", {}, `Attempts (${attempts.length})`), ...attempts] : []),
    ...(unit.parent === undefined ? [] : links("Part of", [unit.parent])),
    ...links("Depends on", unit.above),
    ...links("Needed by", unit.below),
    ...links("Parts", children),
  );
  box.scrollTop = 0;
}
