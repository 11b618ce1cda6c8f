// The map of layers × experts: a canvas that pointer and keyboard can read.

import { count, element, percent } from "./figures.js";

const FADING = 0.75; // of what was asked lately, at each look

export class Heat {
  constructor(canvas, readout, legend, empty) {
    this.canvas = canvas;
    this.readout = readout;
    this.legend = legend;
    this.empty = empty;
    this.view = "asked";
    this.rows = [];
    this.precisions = [];
    this.marked = new Set();
    this.at = null;
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("keydown", (event) => this.move(event));
    canvas.addEventListener("focus", () => this.select(this.at ?? [0, 0]));
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(view) {
    this.view = view;
    this.draw();
    if (this.at) this.tell();
  }

  know(model) {
    this.precisions = model.precisions;
    this.stored = new Map(model.layers.map((one) => [name(one), one.precision]));
    this.draw();
  }

  update(layers) {
    const before = new Map(this.rows.map((row) => [row.name, row]));
    this.rows = layers.map((one) => {
      const old = before.get(name(one));
      const resident = new Uint8Array(one.asked.length);
      for (const id of one.resident) resident[id] = 1;
      const lately = new Float64Array(one.asked.length);
      if (old) one.asked.forEach((n, id) => (lately[id] = FADING * old.lately[id] + Math.max(0, n - old.asked[id])));
      return { name: name(one), component: one.component, layer: one.layer, bank: one.bank, asked: one.asked, resident, lately,
        total: one.asked.reduce((a, b) => a + b, 0) };
    });
    this.draw();
    if (this.at) this.tell(document.activeElement === this.canvas ? "quietly" : "");
  }

  /** Outlines experts: a set of texts "component/layer/bank/expert". */
  mark(keys) {
    this.marked = keys;
    this.draw();
  }

  size() {
    const widest = Math.max(1, ...this.rows.map((row) => row.asked.length));
    const width = this.canvas.parentElement.clientWidth;
    const label = width > 500 ? 56 : 30;
    const cell = (width - label) / widest;
    const height = Math.max(6, Math.min(20, cell * (cell < 6 ? 1.6 : 1)));
    // The labels of the first and last row may be higher than these.
    return { width, label, cell, height, pad: Math.max(0, (13 - height) / 2) };
  }

  draw() {
    const rows = this.rows;
    if (!rows.length) return;
    const { width, label, cell, height, pad } = this.size();
    if (width <= 0) return;
    const ratio = window.devicePixelRatio || 1;
    const tall = height * rows.length + 2 * pad;
    const [w, h] = [Math.round(width * ratio), Math.round(tall * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) {
      this.canvas.width = w;
      this.canvas.height = h;
      this.canvas.style.height = `${tall}px`;
    }
    const style = getComputedStyle(document.documentElement);
    const colour = (one) => style.getPropertyValue(`--${one}`).trim();
    const [none, text, muted] = [colour("cell"), colour("text"), colour("muted")];
    const warm = ramp(colour("cell-warm-low"), colour("cell-warm-high"));
    const cold = ramp(colour("cell-cold-low"), colour("cell-cold-high"));
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, tall);
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.textBaseline = "middle";
    const gap = cell > 5 ? 1 : cell > 3 ? 0.5 : 0;
    const every = Math.ceil(13 / height);
    const values = (row) => (this.view === "lately" ? row.lately : row.asked);
    const top = Math.max(1, ...rows.map((row) => Math.max(...values(row))));
    const log = Math.log1p(top);
    rows.forEach((row, y) => {
      if (y % every === 0) {
        pen.fillStyle = muted;
        pen.fillText(width > 500 ? `layer ${row.layer}` : `${row.layer}`, 0, pad + (y + 0.5) * height);
      }
      const stored = this.stored?.get(row.name);
      const asked = values(row);
      for (let x = 0; x < row.asked.length; x += 1) {
        const [left, up] = [label + x * cell, pad + y * height];
        let inset = 0;
        if (this.view === "precision") {
          const kind = stored?.[x];
          pen.fillStyle = kind == null ? none : warm(this.strength(kind));
        } else if (asked[x] < 0.05) {
          pen.fillStyle = row.resident[x] ? warm(0) : none;
          inset = row.resident[x] ? 0 : Math.min(cell, height) * 0.2;
        } else {
          const strength = Math.log1p(asked[x]) / log;
          pen.fillStyle = row.resident[x] ? warm(strength) : cold(strength);
          inset = row.resident[x] ? 0 : Math.min(cell, height) * 0.2;
        }
        pen.fillRect(left + inset, up + inset, Math.max(0.5, cell - gap - 2 * inset), height - gap - 2 * inset);
        if (this.marked.has(`${row.name}/${x}`)) {
          pen.strokeStyle = text;
          pen.lineWidth = cell > 5 ? 1.5 : 1;
          pen.strokeRect(left + 0.75, up + 0.75, Math.max(1, cell - gap - 1.5), height - gap - 1.5);
        }
      }
    });
    if (this.at) {
      const [y, x] = this.at;
      pen.strokeStyle = text;
      pen.lineWidth = 2;
      pen.strokeRect(label + x * cell - 1, pad + y * height - 1, cell - gap + 2, height - gap + 2);
    }
    this.empty.hidden = this.view === "precision" || rows.some((row) => row.total > 0);
    this.explain();
  }

  /** From 0 for the fewest bits to 1 for the most. */
  strength(kind) {
    if (this.precisions.length < 2) return 0.55;
    const bits = this.precisions.map((one) => Number(/\d+/.exec(one)?.[0] ?? 16));
    const order = [...new Set(bits)].sort((a, b) => a - b);
    return order.length > 1 ? order.indexOf(bits[kind]) / (order.length - 1) : kind / (this.precisions.length - 1);
  }

  explain() {
    const marked = this.marked.size ? [entry("marked", "in the list below")] : [];
    const said = [this.view, this.precisions.join(), marked.length].join("|");
    if (this.said === said) return;
    this.said = said;
    if (this.view !== "precision") {
      this.legend.replaceChildren(
        entry("warm", "in memory, asked for more often →"), entry("cold", "not in memory"), 
        entry("none", this.view === "lately" ? "not asked for lately" : "never asked for"), ...marked);
      return;
    }
    const style = getComputedStyle(document.documentElement);
    const warm = ramp(style.getPropertyValue("--cell-warm-low").trim(), style.getPropertyValue("--cell-warm-high").trim());
    const kinds = [...this.precisions.keys()].sort((a, b) => this.strength(a) - this.strength(b)).map((kind) => {
      const made = entry("kind", this.precisions[kind]);
      made.firstChild.className = "dot";
      made.firstChild.style.background = warm(this.strength(kind));
      return made;
    });
    this.legend.replaceChildren(...kinds, entry("none", "not in the store"), ...marked);
  }

  point(event) {
    const { label, cell, height, pad } = this.size();
    const box = this.canvas.getBoundingClientRect();
    const [y, x] = [Math.floor((event.clientY - box.top - pad) / height), Math.floor((event.clientX - box.left - label) / cell)];
    if (this.rows[y] && x >= 0 && x < this.rows[y].asked.length) this.select([y, x]);
  }

  move(event) {
    if (!this.rows.length || event.ctrlKey || event.altKey || event.metaKey) return;
    let [y, x] = this.at ?? [0, 0];
    const last = () => this.rows[y].asked.length - 1;
    switch (event.key) {
      case "ArrowRight": x += 1; break;
      case "ArrowLeft": x -= 1; break;
      case "ArrowDown": y += 1; break;
      case "ArrowUp": y -= 1; break;
      case "PageDown": y += 8; break;
      case "PageUp": y -= 8; break;
      case "Home": x = 0; break;
      case "End": x = last(); break;
      default: return;
    }
    event.preventDefault();
    y = Math.max(0, Math.min(this.rows.length - 1, y));
    this.select([y, Math.max(0, Math.min(last(), x))]);
  }

  select(at) {
    if (!this.rows.length) return;
    this.at = at;
    this.draw();
    this.tell();
  }

  tell(how = "") {
    const [y, x] = this.at;
    const row = this.rows[y];
    const stored = this.stored?.get(row.name)?.[x];
    const parts = [
      `${row.component} layer ${row.layer}${row.bank === "mlp" ? "" : ` (${row.bank})`}, expert ${x}`,
      `chosen by ${count(row.asked[x])} tokens${row.total ? `, ${percent(row.asked[x] / row.total)} of the layer’s choices` : ""}`,
      row.resident[x] ? "in memory" : "not in memory",
      stored == null ? "not in the store" : this.precisions[stored],
    ];
    const text = parts.join(" · ");
    // A screen reader is told what was moved to; figures that change under it are not read out again and again.
    this.readout.setAttribute("aria-live", how ? "off" : "polite");
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }
}

export const name = (one) => `${one.component}/${one.layer}/${one.bank}`;

const entry = (kind, text) => element("span", { class: kind }, element("i"), text);

function ramp(low, high) {
  const [a, b] = [parse(low), parse(high)];
  return (t) => `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * t)).join(" ")})`;
}

const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
