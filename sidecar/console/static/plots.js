// Plots of figures over time, by uPlot.

import { element } from "./shell.js";
import { figure } from "./stats.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** One plot: lines of [label, colour variable]. set takes the times in seconds and the values of each line. */
export class Plot {
  constructor(into, title, lines, height = 120) {
    this.box = element("figure", { class: "plot" }, element("figcaption", {}, title));
    into.append(this.box);
    this.lines = lines;
    this.height = height;
    this.data = [[], ...lines.map(() => [])];
    this.make();
    this.observer = new ResizeObserver(() => this.plot.setSize(this.size()));
    this.observer.observe(this.box);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.remake = () => this.make();
    this.scheme.addEventListener("change", this.remake);
  }

  size() {
    return { width: Math.max(200, this.box.clientWidth - 4), height: this.height };
  }

  make() {
    this.plot?.destroy();
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, font: "11px system-ui" };
    this.plot = new uPlot({
      ...this.size(), cursor: { drag: { setScale: false } }, legend: { show: this.lines.length > 1, live: false },
      scales: { x: { time: false }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(1, (high ?? 1) * 1.1)] } },
      axes: [{ ...axis, size: 24, values: (_, v) => v.map((s) => `${s} s`) }, { ...axis, size: 48 }],
      series: [{}, ...this.lines.map(([label, variable]) => ({ label, stroke: colour(variable), width: 1.6, points: { show: false } }))],
    }, this.data, this.box);
  }

  set(times, ...values) {
    this.data = [times, ...values];
    this.plot.setData(this.data);
  }

  close() {
    this.observer.disconnect();
    this.scheme.removeEventListener("change", this.remake);
    this.plot.destroy();
    this.box.remove();
  }
}

/** The title of a figure's plot. */
export function title(f) {
  const other = f.with && figure(f.with);
  return `${f.label}${other ? ` and ${other.label[0].toLowerCase() + other.label.slice(1)}` : ""}, ${f.unit}`;
}
