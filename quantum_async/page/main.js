// Puts the page together: verdict, tabs, filter, theme, keys.

for (const unit of units) {
  if (unit.parent !== undefined) (units[unit.parent].children ??= []).push(unit.number);
}

function verdict() {
  const { run } = data;
  const word = run.state === "canceled" ? "canceled" : run.state;
  byId("state").textContent = `${GLYPHS[run.state]} ${word}`;
  byId("state").classList.add(run.state);
  byId("title").textContent = document.title = run.title;
  byId("when").textContent = new Date(run.began * 1000).toLocaleString();
  byId("tiles").append(...run.tiles.map(([value, what]) =>
    make("div", {}, make("b", {}, value), make("span", {}, what))));
  byId("sentences").append(...run.sentences.map(([text, unit]) => {
    if (unit === undefined) return make("li", {}, text);
    const open = (event) => { event.preventDefault(); show({ unit }); };
    return make("li", { class: "bad" }, make("a", { href: "#", onclick: open }, text));
  }));
  const counts = new Map();
  for (const unit of units) counts.set(unit.state, (counts.get(unit.state) ?? 0) + 1);
  byId("counts").append(...Object.keys(GLYPHS).filter((state) => counts.has(state)).map((state) => {
    const query = `state:${state}`;
    const toggle = () => show({ query: view.query === query ? "" : query });
    return make("button", { type: "button", class: `pill ${state}`, onclick: toggle, title: `Show ${state} units only` },
      `${GLYPHS[state]} ${counts.get(state).toLocaleString("en")} ${state}`);
  }));
}

function choices(box, key, options, role) {
  const attribute = role === "tab" ? "aria-selected" : "aria-pressed";
  const buttons = options.map(([value, title]) =>
    make("button", { type: "button", role, onclick: () => show({ [key]: value }) }, title));
  box.append(...buttons);
  listeners.push(() => options.forEach(([value], at) =>
    buttons[at].setAttribute(attribute, String(view[key] === value))));
}

const THEMES = [["", "◐ system"], ["light", "☀ light"], ["dark", "☾ dark"]];

/** The theme is kept where the browser lets a page keep things. */
function kept(value) {
  try {
    if (value === undefined) return localStorage.getItem("quantum-async-theme") ?? "";
    localStorage.setItem("quantum-async-theme", value);
  } catch { /* a file may have no storage */ }
  return value ?? "";
}

function useTheme(name) {
  const at = Math.max(0, THEMES.findIndex(([value]) => value === name));
  document.documentElement.dataset.theme = THEMES[at][0];
  byId("theme").textContent = THEMES[at][1];
  byId("theme").onclick = () => useTheme(kept(THEMES[(at + 1) % THEMES.length][0]));
  readColours();
  redraw();
}

const views = {};

function redraw() {
  views[view.tab]?.draw();
}

function update(changes) {
  for (const tab of ["timeline", "graph", "table"]) byId(tab).hidden = tab !== view.tab;
  const shown = matching.reduce((sum, one) => sum + one, 0);
  byId("matches").textContent = view.query ? `${shown} of ${units.length}` : "";
  if (byId("query").value !== view.query) byId("query").value = view.query;
  if ("query" in changes) views.table.arrange();
  if ("rows" in changes) views.timeline.top = 0;
  if ("unit" in changes) {
    drawer();
    if (view.unit !== null) views[view.tab].reveal(units[view.unit]);
  }
  redraw();
}

function nextFailure() {
  const failures = units.filter((unit) => BAD.has(unit.state));
  if (!failures.length) return;
  const at = failures.findIndex((unit) => unit.number === view.unit);
  show({ unit: failures[(at + 1) % failures.length].number });
}

const KEYS = {
  "/": () => byId("query").focus(),
  f: nextFailure,
  c: () => show({ query: view.query === "critical" ? "" : "critical" }),
  1: () => show({ tab: "timeline" }),
  2: () => data.graph && show({ tab: "graph" }),
  3: () => show({ tab: "table" }),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target === byId("query");
  if (event.key === "Escape") {
    if (typing) byId("query").blur();
    else show({ unit: null });
  } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

verdict();
views.timeline = new Timeline(byId("timeline"));
if (data.graph) views.graph = new Graph(byId("graph"));
views.table = new Table(byId("table"));
const tabs = [["timeline", "Timeline"], ["graph", "Graph"], ["table", "Table"]];
choices(byId("tabs"), "tab", tabs.filter(([tab]) => views[tab]), "tab");
choices(byId("rows"), "rows", [["slots", "by slot"], ["units", "by unit"]], null);
listeners.push(update);
byId("query").addEventListener("input", (event) => show({ query: event.target.value }));
new ResizeObserver(redraw).observe(document.querySelector("main"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => useTheme(kept()));
useTheme(kept());
const asked = fromAddress();
show(views[asked.tab] ? asked : { ...asked, tab: "timeline" });
document.documentElement.dataset.ready = "yes";
