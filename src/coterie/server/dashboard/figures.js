// Numbers as people read them, and elements without markup from text.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SPACE = "\u00a0"; // a number stays with its unit
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const count = (n) => whole.format(n);

export const counted = (n, thing) => `${count(n)} ${n === 1 ? thing : `${thing}s`}`;

export function bytes(n) {
  let unit = 0;
  while (n >= 1024 && unit < UNITS.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(n >= 10 ? 1 : 2)}${SPACE}${UNITS[unit]}`;
}

export const percent = (share, digits = 1) => (share == null ? "–" : `${(100 * share).toFixed(digits)}${SPACE}%`);

export const seconds = (n) => `${rate(n)}${SPACE}s`;

export const rate = (n) => (n < 0.005 ? "0" : n >= 100 ? Math.round(n).toString() : n.toFixed(n >= 10 ? 1 : 2));

export const share = (part, all) => (all > 0 ? part / all : null);

/** An element; `made` are attributes and properties, `inside` nodes and texts. */
export function element(name, made = {}, ...inside) {
  const one = document.createElement(name);
  for (const [key, value] of Object.entries(made)) {
    if (key === "class") one.className = value;
    else if (key.startsWith("aria-") || key === "role" || key === "scope") one.setAttribute(key, value);
    else one[key] = value;
  }
  one.append(...inside);
  return one;
}

/** Draws the latest of `places` values, newest at the right; up to the largest, or to `most`. */
export function line(svg, values, places, most = null) {
  const space = "http://www.w3.org/2000/svg";
  const top = Math.max(most ?? 0, ...values, 1e-9);
  const points = values.map((v, i) => `${(120 * (places - values.length + i)) / (places - 1)},${27 - (25 * v) / top}`);
  const floor = document.createElementNS(space, "line");
  for (const [name, value] of Object.entries({ x1: 0, x2: 120, y1: 27.5, y2: 27.5, class: "floor" })) floor.setAttribute(name, value);
  const drawn = document.createElementNS(space, "polyline");
  drawn.setAttribute("points", points.join(" "));
  svg.replaceChildren(floor, drawn);
}
