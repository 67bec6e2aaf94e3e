// Measurements: the figures of a play, second by second, with where and how it was played. They stay in this tab until they are
// saved to files.

import { config } from "./shell.js";
import { figures } from "./stats.js";

export const maxSeconds = 3600;
const format = "sidestream-measurements";
const shelf = "measurements";

export class Measurement {
  constructor(about, samples = []) {
    this.about = { at: new Date().toISOString(), page: config.region, browser: navigator.userAgent, ...about };
    this.samples = samples; // of what second() gives, one a second
  }

  /** Adds a second. Those in which nothing was measured, because the session was lost, are seconds without a picture. */
  add(s) {
    this.began ??= performance.now();
    const seconds = Math.min(Math.round((performance.now() - this.began) / 1000), maxSeconds - 1);
    while (this.samples.length < seconds) this.samples.push({ fps: 0, freezeMs: 1000 });
    // Six digits are more than anybody measures.
    this.samples.push(Object.fromEntries(figures.filter(({ key }) => Number.isFinite(s[key])).map(({ key }) => [key, Number(s[key].toPrecision(6))])));
  }

  get name() {
    const loss = this.about.lossPercent ? `, ${this.about.lossPercent} % loss` : "";
    return `${this.about.stream} from ${this.about.region}${loss}`;
  }

  /** A file's name without its end. */
  get file() {
    return `sidestream-${this.about.stream}-${this.about.region}-${this.about.at.slice(0, 19)}`.replace(/[^\w.-]+/g, "-");
  }

  csv() {
    const quote = (v) => (/[",\n]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : v);
    const about = Object.entries(this.about).map(([k, v]) => `# ${k}: ${Array.isArray(v) ? v.join(" > ") : v}`.replaceAll("\n", " "));
    const rows = this.samples.map((s, i) => [i + 1, ...figures.map(({ key }) => s[key] ?? "")].map(quote).join(","));
    return [...about, ["second", ...figures.map(({ key }) => key)].join(","), ...rows, ""].join("\r\n");
  }
}

/** The text of a file with measurements. */
export function pack(measurements) {
  return JSON.stringify({ format, version: 1, measurements: measurements.map(({ about, samples }) => ({ about, samples })) }, null, 1);
}

/** The measurements in the text of a file; throws words that say what is wrong with it. */
export function unpack(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This is no JSON.");
  }
  if (file?.format !== format || !Array.isArray(file.measurements)) throw new Error("This file has no measurements of Sidestream.");
  if (file.version !== 1) throw new Error("This file was written by a later version.");
  const keys = new Set(figures.map((f) => f.key));
  return file.measurements.map((m) => {
    if (typeof m?.about?.stream !== "string" || typeof m.about.region !== "string" || typeof m.about.at !== "string" || !Array.isArray(m.samples)) {
      throw new Error("A measurement in this file is incomplete.");
    }
    const samples = m.samples.slice(0, maxSeconds).map((s) => Object.fromEntries(
      Object.entries(s ?? {}).filter(([key, value]) => keys.has(key) && Number.isFinite(value)),
    ));
    return new Measurement(m.about, samples);
  });
}

/** Those that this tab remembers. */
export function kept() {
  try {
    return unpack(sessionStorage.getItem(shelf) ?? pack([]));
  } catch {
    return [];
  }
}

/** Remembers all of a list, or says false where there is no room. */
export function keepAll(list) {
  try {
    sessionStorage.setItem(shelf, pack(list));
    return true;
  } catch {
    return false;
  }
}

export function keep(measurement) {
  return keepAll([...kept(), measurement]);
}

/** What a measurement comes to. */
export function summary({ samples }) {
  const of = (key) => samples.map((s) => s[key]).filter((v) => v !== undefined);
  const mean = (key) => { const v = of(key); return v.length ? v.reduce((a, b) => a + b, 0) / v.length : undefined; };
  const sum = (key) => { const v = of(key); return v.length ? v.reduce((a, b) => a + b, 0) : undefined; };
  const whole = (key) => (sum(key) === undefined ? undefined : Math.round(sum(key)));
  // What counts from each session's beginning; a lower number is a new session's.
  const rise = (key) => { const v = of(key); return v.length ? v.reduce((n, x, i) => n + (i === 0 ? 0 : x < v[i - 1] ? x : x - v[i - 1]), 0) : undefined; };
  const quantile = (key, q) => { const v = of(key).sort((a, b) => a - b); return v.length ? v[Math.min(v.length - 1, Math.floor(q * v.length))] : undefined; };
  return {
    "Length, s": samples.length,
    "Round trip, ms": mean("rttMs"),
    "Packets lost, %": mean("lossPercent"),
    "Asked for again (NACK)": whole("nacks"),
    "Key frames asked for (PLI)": whole("plis"),
    "Jitter buffer, ms": mean("bufferMs"),
    "Jitter buffer, highest, ms": quantile("bufferMs", 1),
    "Frames per second": mean("fps"),
    "Freezes": rise("freezes"),
    "Frozen, s": sum("freezeMs") === undefined ? undefined : Math.round(sum("freezeMs") / 100) / 10,
    "Without a session, s": samples.filter((s) => s.rttMs === undefined && s.videoKbps === undefined).length || undefined,
    "Frames dropped": rise("dropped"),
    "Video, kbit/s": mean("videoKbps"),
    "Audio, kbit/s": mean("audioKbps"),
    "Since the capture, ms": mean("latencyMs"),
  };
}
