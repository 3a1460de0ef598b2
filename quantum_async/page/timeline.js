// When each attempt ran: a row a slot (or a unit), drawn on a canvas, only as far as it is seen.

const ROW = 22, GUTTER = 150, TOP = 74, CHART = 42;

/** Return the rows, each with a label and its bars (unit, attempt, from, to). */
function slotRows() {
  const places = new Map();
  for (const unit of units) {
    unit.spans.forEach(([from, to], attempt) => {
      const place = unit.ran_on ?? "?";
      if (!places.has(place)) places.set(place, []);
      places.get(place).push({ unit, attempt, from, to });
    });
  }
  const rows = [];
  for (const [place, bars] of [...places].sort(([one], [other]) => order(one) - order(other))) {
    bars.sort((one, other) => one.from - other.from || one.to - other.to);
    const lanes = [];
    for (const bar of bars) {
      let lane = lanes.findIndex((row) => row.end <= bar.from + 1e-9);
      if (lane < 0) lane = lanes.push({ bars: [], end: 0 }) - 1;
      lanes[lane].bars.push(bar);
      lanes[lane].end = Math.max(bar.to, bar.from + 1e-9);
    }
    lanes.forEach((row, at) => rows.push({ label: at ? "" : `${place} × ${lanes.length}`, bars: row.bars }));
  }
  return rows;
}

const PLACES = ["process", "interpreter", "custom", "thread", "loop", "inline"];

function order(place) {
  return (PLACES.indexOf(place) + PLACES.length) % PLACES.length + (PLACES.includes(place) ? 0 : 9);
}

function unitRows() {
  return units
    .filter((unit) => unit.spans.length)
    .sort((one, other) => one.start - other.start || one.number - other.number)
    .map((unit) => ({
      label: unit.name,
      bars: unit.spans.map(([from, to], attempt) => ({ unit, attempt, from, to })),
    }));
}

/** Return how many units ran at once, as steps [moment, count]. */
function loadSteps() {
  const changes = [];
  for (const unit of units) {
    if (["map", "run", "race"].includes(unit.ran_on)) continue;
    for (const [from, to] of unit.spans) changes.push([from, 1], [to, -1]);
  }
  changes.sort((one, other) => one[0] - other[0] || one[1] - other[1]);
  let now = 0;
  return changes.map(([moment, change]) => [moment, (now += change)]);
}

class Timeline {
  constructor(section) {
    this.canvas = section.querySelector("canvas");
    this.load = loadSteps();
    this.peak = Math.max(1, ...this.load.map(([, count]) => count));
    this.made = {};
    this.all();
    this.draw = soon(() => this.drawNow());
    pointer(this.canvas, this);
    this.canvas.addEventListener("dblclick", () => { this.all(); this.draw(); });
  }

  /** Show the whole run. */
  all() {
    [this.from, this.to, this.top] = [0, length * 1.02, 0];
  }

  get rows() {
    return (this.made[view.rows] ??= view.rows === "units" ? unitRows() : slotRows());
  }

  x(moment) {
    return GUTTER + ((moment - this.from) / (this.to - this.from)) * (this.width - GUTTER);
  }

  pan(dx, dy) {
    const move = (-dx / (this.width - GUTTER)) * (this.to - this.from);
    this.from += move;
    this.to += move;
    this.scroll(-dy);
  }

  scroll(by) {
    this.top += by;
    this.draw();
  }

  zoom(factor, x) {
    const share = Math.max(0, (x - GUTTER) / (this.width - GUTTER));
    const fixed = this.from + share * (this.to - this.from);
    const wide = Math.min(length * 4, Math.max(length * 1e-6, (this.to - this.from) * factor));
    this.from = fixed - share * wide;
    this.to = this.from + wide;
    this.draw();
  }

  wheel(event) {
    if (event.ctrlKey || event.metaKey || event.offsetY < TOP) {
      this.zoom(Math.exp(event.deltaY * 0.002), event.offsetX);
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      this.pan(-(event.deltaX || event.deltaY), 0);
    } else this.scroll(event.deltaY);
  }

  /** Return the unit at a point, if there is one. */
  at(x, y) {
    if (y < TOP) return null;
    const row = this.rows[Math.floor((y - TOP + this.top) / ROW)];
    if (row && x < GUTTER && view.rows === "units") return row.bars[0].unit;
    const bar = row?.bars.findLast((one) => x >= this.x(one.from) - 2 && x <= this.x(one.to) + 2);
    return bar?.unit ?? null;
  }

  /** Bring a unit into sight. */
  reveal(unit) {
    if (unit.start === null) return;
    const end = unit.start + unit.duration;
    if (end < this.from || unit.start > this.to) {
      const wide = this.to - this.from;
      this.from = unit.start - wide / 3;
      this.to = this.from + wide;
    }
    this.height = this.canvas.parentElement.getBoundingClientRect().height;
    const row = this.rows.findIndex((one) => one.bars.some((bar) => bar.unit === unit));
    const [y, room] = [row * ROW - this.top, this.height - TOP];
    if (y < 0 || y > room - ROW) this.scroll(y - room / 2);
  }

  drawNow() {
    if (view.tab !== "timeline") return;
    const { context, width, height } = prepared(this.canvas);
    Object.assign(this, { width, height });
    const most = Math.max(0, this.rows.length * ROW + TOP + 20 - height);
    this.top = Math.min(most, Math.max(0, this.top));
    this.grid(context);
    context.save();
    context.beginPath();
    context.rect(0, TOP, width, height - TOP);
    context.clip();
    const first = Math.floor(this.top / ROW);
    const last = Math.min(this.rows.length, first + Math.ceil((height - TOP) / ROW) + 1);
    for (let at = first; at < last; at++) this.row(context, this.rows[at], TOP + at * ROW - this.top);
    context.restore();
    this.chart(context);
  }

  grid(context) {
    const wide = this.to - this.from;
    const raw = wide / Math.max(2, (this.width - GUTTER) / 110);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    for (let n = Math.max(0, Math.ceil(this.from / step)); n * step <= this.to; n++) {
      const x = this.x(n * step);
      if (x < GUTTER) continue;
      context.fillStyle = colour.grid;
      context.fillRect(x, TOP - 4, 1, this.height);
      context.fillStyle = colour.quiet;
      context.fillText(n ? seconds(n * step).replace(/\.0+ /, " ") : "0", x, TOP - 10);
    }
    context.textAlign = "left";
  }

  /** Draw how many units ran at once. */
  chart(context) {
    const scale = (CHART - 6) / this.peak;
    context.save();
    context.beginPath();
    context.rect(GUTTER, 0, this.width - GUTTER, TOP);
    context.clip();
    // The most in each column of pixels: what is narrower is only noise.
    const columns = new Float64Array(Math.ceil(this.width - GUTTER) + 1);
    let [count, at] = [0, 0];
    for (const [moment, next] of this.load) {
      const x = Math.min(columns.length - 1, Math.floor(this.x(moment) - GUTTER));
      for (; at < x; at++) columns[at] = Math.max(columns[at], count);
      if (x >= 0) columns[x] = Math.max(columns[x], next);
      count = next;
    }
    context.beginPath();
    context.moveTo(GUTTER, CHART + 8);
    columns.forEach((most, column) => context.lineTo(GUTTER + column, CHART + 8 - most * scale));
    context.lineTo(this.width, CHART + 8);
    context.globalAlpha = 0.22;
    context.fillStyle = colour.accent;
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = colour.accent;
    context.lineWidth = 1;
    context.stroke();
    context.restore();
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = colour.quiet;
    context.fillText("running at once", 20, 24);
    context.fillText(`at most ${this.peak}`, 20, 39);
    context.fillStyle = colour.line;
    context.fillRect(0, TOP - 1, this.width, 1);
  }

  row(context, row, y) {
    context.font = `${view.rows === "units" ? "11px ui-monospace, monospace" : "600 12px system-ui, sans-serif"}`;
    context.fillStyle = colour.quiet;
    if (row.label) context.fillText(fitted(context, row.label, GUTTER - 28), 20, y + 15);
    for (const bar of row.bars) this.bar(context, bar, y);
  }

  bar(context, { unit, attempt, from, to }, y) {
    const left = Math.max(GUTTER, this.x(from)), right = Math.min(this.width, this.x(to));
    if (right < GUTTER || left > this.width) return;
    const wide = Math.max(1.5, right - left);
    const retried = attempt < unit.spans.length - 1;
    const chosen = view.unit === unit.number;
    const strength = matching[unit.number] ? 1 : 0.13;
    if (!attempt && unit.waited > 0 && (chosen || view.rows === "units")) {
      const ready = Math.max(GUTTER, this.x(from - unit.waited));
      context.globalAlpha = strength * 0.7;
      context.fillStyle = colour.quiet;
      for (let x = ready; x < left - 1; x += 4) context.fillRect(x, y + ROW / 2 - 1, 2, 2);
    }
    context.globalAlpha = strength * (retried ? 0.45 : 0.85);
    context.fillStyle = colour[attemptState(unit, attempt)];
    // Paths take ten times as long as rectangles, and nobody sees the corners of a small bar.
    if (wide < 14) context.fillRect(left, y + 2, Math.max(1.5, wide - 0.5), ROW - 5);
    else {
      context.beginPath();
      context.roundRect(left, y + 2, wide, ROW - 5, 3);
      context.fill();
    }
    context.globalAlpha = strength;
    if (unit.critical || chosen) {
      context.strokeStyle = chosen ? colour.ink : colour.accent;
      context.lineWidth = 2;
      context.beginPath();
      context.roundRect(left, y + 2, wide, ROW - 5, Math.min(3, wide / 2));
      context.stroke();
    }
    if (wide > 34 && view.rows === "slots") {
      context.font = "11px ui-monospace, monospace";
      context.fillStyle = colour.card;
      const mark = retried ? "↻ " : unit.state === "completed" ? "" : `${GLYPHS[unit.state]} `;
      context.fillText(fitted(context, mark + unit.name, wide - 10), left + 5, y + 15);
    }
    context.globalAlpha = 1;
  }
}

/** Return as much of a text as there is room for. */
function fitted(context, text, room) {
  const letters = Math.floor(room / context.measureText("m").width);
  if (text.length <= letters || context.measureText(text).width <= room) return text;
  let kept = Math.min(text.length, letters * 2);
  while (kept > 0 && context.measureText(`${text.slice(0, kept)}…`).width > room) kept--;
  return kept > 0 ? `${text.slice(0, kept)}…` : "";
}

/** Let a canvas be dragged, zoomed, pointed at and clicked. */
function pointer(canvas, owner) {
  let last = null, moved = false;
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); owner.wheel(event); }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    [last, moved] = [event, false];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last) {
      moved ||= Math.hypot(event.clientX - last.clientX, event.clientY - last.clientY) > 3;
      if (moved) {
        owner.pan(event.clientX - last.clientX, event.clientY - last.clientY);
        last = event;
      }
    }
    const unit = last && moved ? null : owner.at(event.offsetX, event.offsetY);
    canvas.style.cursor = unit ? "pointer" : "grab";
    tip(event, unit && summary(unit));
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!moved) show({ unit: owner.at(event.offsetX, event.offsetY)?.number ?? null });
    last = null;
  });
  canvas.addEventListener("pointerleave", (event) => tip(event, null));
}
