// Losses by step as a picture: drawn with elements, in the page's colours, and told in words beside it.

import { el, svg } from "./dom.js";

const LEFT = 46, RIGHT = 14, TOP = 12, BOTTOM = 34;
const MOST = 1200; // points of a line before neighbours are joined

export const said = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(2) : value.toFixed(3));
export const whole = (value) => value.toLocaleString("en");

// Round numbers between two values, about `count` of them.
export function ticks(low, high, count) {
  const room = high - low || Math.abs(high) || 1;
  const rough = room / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9), found = [];
  for (let at = first; at * step <= high + step * 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function fewer(points) {
  if (points.length <= MOST) return points;
  const joined = [];
  for (let at = 0; at < points.length; at += 2) {
    const pair = points.slice(at, at + 2);
    joined.push([pair.at(-1)[0], pair.reduce((sum, [, loss]) => sum + loss, 0) / pair.length]);
  }
  return joined;
}

export class Chart {
  constructor(name) {
    this.name = name;
    this.train = [];
    this.val = [];
    this.steps = null;
    this.picture = svg("svg", { class: "plot", role: "img" });
    this.words = el("figcaption", {});
    this.element = el("figure", { class: "chart" }, this.words, this.picture);
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  // More points of a run; what begins before the last known step is another beginning.
  add({ train, val }) {
    const known = Math.max(-1, ...[this.train, this.val].map((points) => points.at(-1)?.[0] ?? -1));
    const first = Math.min(Infinity, ...[train, val].map((points) => points[0]?.[0] ?? Infinity));
    if (first <= known) this.train = this.val = [];
    this.train = fewer([...this.train, ...train]);
    this.val = fewer([...this.val, ...val]);
    this.draw();
  }

  draw() {
    const width = Math.round(this.element.clientWidth), height = width < 480 ? 200 : 250;
    const all = [...this.train, ...this.val];
    this.tell();
    this.picture.replaceChildren();
    this.picture.classList.toggle("none", all.length < 2);
    if (width < 100 || all.length < 2) return;
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.picture.setAttribute("height", height);
    const losses = all.map(([, loss]) => loss), last = Math.max(...all.map(([step]) => step), 1);
    const gap = Math.max(...losses) - Math.min(...losses) || 0.1;
    const low = Math.max(0, Math.min(...losses) - gap * 0.06), high = Math.max(...losses) + gap * 0.06;
    const x = (step) => LEFT + ((width - LEFT - RIGHT) * step) / last;
    const y = (loss) => TOP + ((height - TOP - BOTTOM) * (high - loss)) / (high - low);
    for (const loss of ticks(low, high, 4)) {
      this.picture.append(
        svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(loss), y2: y(loss) }),
        svg("text", { x: LEFT - 8, y: y(loss) + 4, "text-anchor": "end" }, String(loss)));
    }
    for (const step of ticks(0, last, width < 480 ? 3 : 6).filter(Number.isInteger)) {
      this.picture.append(svg("text", { x: x(step), y: height - 14, "text-anchor": step === 0 ? "start" : step > last * 0.97 ? "end" : "middle" }, whole(step)));
    }
    this.picture.append(
      svg("text", { x: width - RIGHT, y: height - 1, "text-anchor": "end" }, "steps"),
      svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM }));
    for (const [kind, points] of [["train", this.train], ["val", this.val]]) {
      const path = points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
      this.picture.append(svg("polyline", { class: kind, points: path }));
      if (kind === "val" && points.length <= 60) {
        for (const [step, loss] of points) this.picture.append(svg("circle", { class: kind, cx: x(step).toFixed(1), cy: y(loss).toFixed(1), r: 3 }));
      }
    }
  }

  tell() {
    const value = (points, name, kind) =>
      points.length ? el("span", {}, el("i", { class: `swatch ${kind}` }), `${name} `, el("b", {}, said(points.at(-1)[1]))) : null;
    const parts = [value(this.train, "training", "train"), value(this.val, "validation", "val")];
    const step = Math.max(0, ...[this.train, this.val].map((points) => points.at(-1)?.[0] ?? 0));
    this.words.replaceChildren(...parts.filter(Boolean), ...(parts.some(Boolean) ? [] : ["No losses are written yet."]));
    const train = this.train.at(-1), val = this.val.at(-1);
    const words = [`Losses of ${this.name} up to step ${whole(step)}`, train && `training ${said(train[1])}`, val && `validation ${said(val[1])}, at first ${said(this.val[0][1])}`];
    this.picture.setAttribute("aria-label", words.filter(Boolean).join("; "));
  }
}
