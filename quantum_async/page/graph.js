// The plan as a graph, with the states of the run. Places were computed when the page was made.

const READABLE = 0.45; // below this scale names are left out

class Graph {
  constructor(section) {
    this.canvas = section.querySelector("canvas");
    this.layout = data.graph;
    const { spans, level, y, height } = this.layout;
    this.boxes = y.map((middle, node) => ({
      unit: this.layout.units[node] === null ? null : units[this.layout.units[node]],
      name: this.layout.names[node],
      left: spans[level[node]][0],
      right: spans[level[node]][1],
      top: middle - height / 2,
    }));
    this.lines = this.layout.lines.map((line) => this.path(line));
    this.scale = 0;
    this.draw = soon(() => this.drawNow());
    pointer(this.canvas, this);
    this.canvas.addEventListener("dblclick", () => this.fit());
    byId("fit").addEventListener("click", () => this.fit());
  }

  /** Return a line as a path, as the SVG of a plan has it, and what it spans. */
  path([source, node, heights, critical]) {
    const { spans, level } = this.layout;
    const [first, last] = [level[source], level[node]];
    const path = new Path2D();
    let [y, x] = [heights[0], spans[first][1]];
    path.moveTo(x, y);
    heights.slice(1).forEach((height, at) => {
      const end = at === heights.length - 2;
      const [start, stop] = end ? [spans[last][0], null] : spans[first + 1 + at];
      const middle = (x + start) / 2;
      path.bezierCurveTo(middle, y, middle, height, start, height);
      if (stop !== null) path.lineTo(stop, height);
      [x, y] = [stop, height];
    });
    return {
      path, critical: Boolean(critical), source, node,
      left: spans[first][1], right: spans[last][0],
      top: Math.min(...heights), bottom: Math.max(...heights),
    };
  }

  fit() {
    this.scale = 0;
    this.draw();
  }

  settle() {
    const wide = this.layout.width || 1, high = this.layout.bottom || 1;
    this.scale = Math.min(1.25, (this.width - 80) / wide, (this.height - 60) / high);
    // A tall graph at full height would be dust: keep it readable, and begin at its top.
    this.scale = Math.max(this.scale, Math.min(0.5, (this.width - 80) / wide));
    this.left = Math.max(40, (this.width - wide * this.scale) / 2);
    this.up = Math.max(30, (this.height - high * this.scale) / 2);
  }

  pan(dx, dy) {
    this.left += dx;
    this.up += dy;
    this.draw();
  }

  wheel(event) {
    const scale = Math.min(4, Math.max(0.02, this.scale * Math.exp(-event.deltaY * 0.0015)));
    this.left = event.offsetX - ((event.offsetX - this.left) * scale) / this.scale;
    this.up = event.offsetY - ((event.offsetY - this.up) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  at(x, y) {
    const [px, py] = [(x - this.left) / this.scale, (y - this.up) / this.scale];
    const found = this.boxes.find(
      (box) => px >= box.left && px <= box.right && py >= box.top && py <= box.top + this.layout.height,
    );
    return found?.unit ?? null;
  }

  reveal(unit) {
    const box = this.boxes.find((one) => one.unit === unit);
    if (!box || !this.scale) return;
    const x = this.left + box.left * this.scale, y = this.up + box.top * this.scale;
    if (x < 0 || x > this.width - 60) this.left += this.width / 3 - x;
    if (y < 0 || y > this.height - 30) this.up += this.height / 2 - y;
  }

  drawNow() {
    if (view.tab !== "graph") return;
    const { context, width, height } = prepared(this.canvas);
    Object.assign(this, { width, height });
    if (!this.scale) this.settle();
    context.translate(this.left, this.up);
    context.scale(this.scale, this.scale);
    const seen = {
      left: -this.left / this.scale, top: -this.up / this.scale,
      right: (width - this.left) / this.scale, bottom: (height - this.up) / this.scale,
    };
    this.edges(context, seen);
    for (const box of this.boxes) {
      const out = box.right < seen.left || box.left > seen.right;
      if (!out && box.top + this.layout.height > seen.top && box.top < seen.bottom) this.box(context, box);
    }
  }

  edges(context, seen) {
    const chosen = view.unit === null ? null : units[view.unit];
    const thin = Math.max(1.1, 0.6 / this.scale);
    const emphasised = [];
    context.strokeStyle = colour.pending;
    context.lineWidth = thin;
    context.globalAlpha = chosen ? 0.35 : 0.75;
    for (const line of this.lines) {
      if (line.right < seen.left || line.left > seen.right) continue;
      if (line.bottom < seen.top || line.top > seen.bottom) continue;
      const touches = chosen && (this.boxes[line.source].unit === chosen || this.boxes[line.node].unit === chosen);
      if (line.critical || touches) emphasised.push([line, touches]);
      else context.stroke(line.path);
    }
    context.globalAlpha = 1;
    for (const [line, touches] of emphasised) {
      context.strokeStyle = touches ? colour.ink : colour.accent;
      context.lineWidth = thin * 2.2;
      context.stroke(line.path);
    }
  }

  box(context, { unit, name, left, right, top }) {
    const state = unit?.state ?? "pending";
    const high = this.layout.height;
    context.globalAlpha = unit && matching[unit.number] ? 1 : 0.2;
    context.beginPath();
    context.roundRect(left, top, right - left, high, 7);
    context.fillStyle = colour.card;
    context.fill();
    const strength = context.globalAlpha;
    context.globalAlpha = strength * (this.scale < READABLE ? 0.7 : 0.14);
    context.fillStyle = colour[state];
    context.fill();
    context.globalAlpha = strength;
    const chosen = unit && view.unit === unit.number;
    context.strokeStyle = chosen ? colour.ink : unit?.critical ? colour.accent : colour[state];
    context.lineWidth = chosen || unit?.critical ? 2.6 : 1.2;
    context.setLineDash(state === "skipped" ? [5, 3] : []);
    context.stroke();
    context.setLineDash([]);
    if (this.scale >= READABLE) {
      context.font = "12px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
      context.fillStyle = colour[state];
      context.fillText(GLYPHS[state], left + 10, top + 19);
      context.fillStyle = colour.ink;
      context.fillText(fitted(context, name, right - left - 38), left + 28, top + 19);
      context.font = "10px system-ui, sans-serif";
      context.fillStyle = colour.quiet;
      const note = unit === null ? "not in this run" : unit.duration === null ? unit.state : seconds(unit.duration);
      context.fillText(note, left + 28, top + 34);
    }
    context.globalAlpha = 1;
  }
}
