// What all pages share: their settings, words and numbers, and how they ask their own server.

export const config = JSON.parse(document.getElementById("config").textContent);
export const $ = (id) => document.getElementById(id);

/** For browser tests: the figures of the last second, as shown. */
window.sidestream = { stats: {} };

export const number = (n, digits = 0) => n.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** A number of bytes for people. */
export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 1000 && unit < units.length - 1) { n /= 1000; unit++; }
  return `${number(n, unit && n < 100 ? 1 : 0)} ${units[unit]}`;
}

/** Seconds for people. */
export function duration(s) {
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

/** An element with what is in it; values of attributes that are false or undefined are left out. */
export function element(name, attributes = {}, ...children) {
  const e = name.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else e.setAttribute(key, value === true ? "" : value);
  }
  e.append(...children.filter((c) => c !== undefined && c !== null));
  return e;
}

/** Writes text only where it has changed, so that screen readers do not hear it again. */
export function write(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

/** Reads server-sent events until the signal or the server ends them: hear(name, data). */
export async function readEvents(url, headers, signal, hear) {
  const response = await fetch(url, { headers: { ...headers, Accept: "text/event-stream" }, signal, cache: "no-store" });
  if (!response.ok) throw Object.assign(new Error(`The server answered ${response.status}.`), { status: response.status });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      let name = "message";
      const data = [];
      for (const line of part.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      }
      if (data.length) hear(name, JSON.parse(data.join("\n")));
    }
  }
}

/** The page of a region: this one's own, or another's. */
export function pagesOf(region) {
  const found = config.regions.find((r) => r.name === region);
  return found?.url && region !== config.region ? new URL(found.url.endsWith("/") ? found.url : `${found.url}/`) : new URL("./", location.href);
}

/** The round trip to each region in milliseconds, by name; undefined where a region does not answer. */
export async function distances() {
  const found = {};
  await Promise.all(config.regions.map(async ({ name }) => {
    const at = new URL("api/ping", pagesOf(name));
    let best;
    try {
      for (let i = 0; i < 4; i++) { // the first one opens the connection
        const began = performance.now();
        await fetch(at, { cache: "no-store", signal: AbortSignal.timeout(3000) });
        if (i > 0) best = Math.min(best ?? Infinity, performance.now() - began);
      }
    } catch { /* it does not answer */ }
    found[name] = best;
  }));
  return found;
}

/** The region that is nearest of those that answer. */
export function nearest(found) {
  const answering = Object.entries(found).filter(([, ms]) => ms !== undefined).sort((a, b) => a[1] - b[1]);
  return answering[0]?.[0];
}

/** The streams that are listed; none where the server lists none, or not to us. */
export async function streams(token) {
  if (!config.list) return [];
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch("api/streams", { headers, cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!response.ok) return [];
  return (await response.json()).streams;
}

/** Hands a file to the visitor. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
