// The cascade: where nodes are, what they carry to whom, and why. All of it comes from one node, which asks the others.

import { $, bytes, config, duration, element, number, readEvents, write } from "./shell.js";
import { placeOf, project } from "./places.js";

const shelf = "console-token";
let last; // the cascade before, for bit rates
let rates = new Map(); // bits per second of relays, by node and stream
let shownNode = location.hash.startsWith("#node=") ? decodeURIComponent(location.hash.slice(6)) : undefined;

const reports = (cascade) => cascade.nodes.filter((n) => n.report);
const mbit = (bits) => (bits >= 1e6 ? `${number(bits / 1e6, 1)} Mbit/s` : `${number(bits / 1e3)} kbit/s`);
const short = (id) => (id.length > 12 ? `${id.slice(0, 8)}…` : id);
const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;

// ---- What is worked out of it

function measure(cascade) {
  const found = new Map();
  const seconds = last ? (new Date(cascade.at) - new Date(last.at)) / 1000 : 0;
  for (const n of reports(cascade)) {
    const old = last?.nodes.find((o) => o.node === n.node)?.report;
    for (const r of n.report.relays) {
      const key = `${n.node}\n${r.stream}`;
      const before = old?.relays.find((o) => o.stream === r.stream);
      const risen = before ? r.bytes - before.bytes : -1;
      if (seconds > 0 && risen >= 0) {
        const now = 8 * risen / seconds;
        found.set(key, rates.has(key) ? 0.6 * rates.get(key) + 0.4 * now : now);
      }
    }
  }
  rates = found;
  last = cascade;
}

const rate = (node, stream) => rates.get(`${node}\n${stream}`) ?? 0;
const running = (r) => r.state === "live" || r.state === "connecting";

function health(n) {
  if (!n.connected) return ["gone", "not connected"];
  if (!n.report) return ["bad", "tells nothing"];
  if (n.report.draining) return ["bad", "draining"];
  if (!n.report.ready) return ["bad", "not ready"];
  return ["good", "ready"];
}

/** Streams by name, with who has them. */
function streamsOf(cascade) {
  const all = new Map();
  const of = (name) => {
    if (!all.has(name)) all.set(name, { name, origins: [], holders: [], viewers: new Map(), now: 0, sofar: 0, epoch: 0 });
    return all.get(name);
  };
  const add = (s, cluster, n) => { if (n > 0) s.viewers.set(cluster, (s.viewers.get(cluster) ?? 0) + n); };
  for (const n of reports(cascade)) {
    for (const p of n.report.published) {
      const s = of(p.stream);
      if (p.counts) { s.origins.push(n.cluster); s.epoch = p.epoch; }
      s.holders.push(n.cluster);
      add(s, n.cluster, p.viewers);
    }
    for (const r of n.report.relays.filter(running)) {
      const s = of(r.stream);
      s.holders.push(n.cluster);
      add(s, n.cluster, r.viewers);
      s.now += rate(n.node, r.stream);
      s.sofar += r.bytes;
    }
  }
  return [...all.values()].sort((a, b) => a.name.localeCompare(b.name));
}

/** What goes from cluster to cluster. */
function flowsOf(cascade) {
  const clusterOf = new Map(cascade.nodes.map((n) => [n.node, n.cluster]));
  const flows = new Map();
  for (const n of reports(cascade)) {
    for (const r of n.report.relays.filter((x) => x.state === "live")) {
      const from = clusterOf.get(r.parent);
      if (!from || from === n.cluster) continue;
      const key = `${from}\n${n.cluster}`;
      const flow = flows.get(key) ?? { from, to: n.cluster, bits: 0, streams: [], rtt: 0 };
      flow.bits += rate(n.node, r.stream);
      flow.streams.push(r.stream);
      flow.rtt = Math.max(flow.rtt, r.rttMs);
      flows.set(key, flow);
    }
  }
  return [...flows.values()];
}

// ---- The map

let land;

async function loadLand() {
  const text = await (await fetch("static/land.svg")).text();
  land = new DOMParser().parseFromString(text, "image/svg+xml").querySelector("path").getAttribute("d");
}

function positions(clusters) {
  const at = new Map();
  let lost = 0;
  for (const name of clusters) {
    const place = placeOf(name, config.places);
    let point = place ? project(place) : [80 + 150 * (lost % 6), 425 - 40 * Math.floor(lost++ / 6)];
    // Clusters of one place stand beside each other.
    while ([...at.values()].some((p) => Math.hypot(p[0] - point[0], p[1] - point[1]) < 16)) point = [point[0] + 18, point[1] + 6];
    at.set(name, point);
  }
  return at;
}

function drawMap(cascade) {
  const clusters = [...new Set(cascade.nodes.map((n) => n.cluster || "elsewhere"))].sort();
  const at = positions(clusters);
  const here = cascade.nodes.find((n) => n.node === cascade.here)?.cluster;
  const svg = element("svg:svg", { viewBox: "0 0 1000 455", role: "img", "aria-labelledby": "map-words" });
  svg.append(element("svg:path", { class: "land", d: land, fill: "var(--land)" }));
  for (const name of clusters.filter((c) => c !== here && at.has(here))) {
    const [[x1, y1], [x2, y2]] = [at.get(here), at.get(name)];
    svg.append(element("svg:line", { class: "mesh", x1, y1, x2, y2 }));
  }
  const labels = [];
  const words = [];
  for (const f of flowsOf(cascade)) {
    const [[x1, y1], [x2, y2]] = [at.get(f.from), at.get(f.to)];
    const bend = Math.min(90, 0.22 * Math.hypot(x2 - x1, y2 - y1));
    const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2 - bend];
    svg.append(element("svg:path", { class: "flow", d: `M${x1} ${y1}Q${mx} ${my} ${x2} ${y2}` }));
    labels.push(element("svg:text", { x: (x1 + 2 * mx + x2) / 4, y: (y1 + 2 * my + y2) / 4 - 12, "text-anchor": "middle" },
      `${f.streams.length === 1 ? f.streams[0] : plural(f.streams.length, "stream")} · ${mbit(f.bits)}`));
    words.push(`${f.streams.map((s) => `“${s}”`).join(", ")} from ${f.from} to ${f.to} at ${mbit(f.bits)}${f.rtt ? `, ${number(f.rtt)} ms away` : ""}`);
  }
  for (const name of clusters) {
    const nodes = cascade.nodes.filter((n) => (n.cluster || "elsewhere") === name);
    const viewers = nodes.reduce((sum, n) => sum + (n.report ? [...n.report.relays, ...n.report.published].reduce((s, x) => s + Math.max(0, x.viewers), 0) : 0), 0);
    const states = nodes.map((n) => health(n)[0]);
    const state = states.every((s) => s === "gone") ? "gone" : states.some((s) => s !== "good") ? "bad" : "";
    const [x, y] = at.get(name);
    svg.append(element("svg:g", { class: `cluster ${state}` }, element("svg:circle", { cx: x, cy: y, r: 8 })));
    labels.push(element("svg:text", { x, y: y + 25, "text-anchor": "middle" }, `${name}${name === here ? " (here)" : ""} · ${plural(viewers, "viewer")}`));
  }
  svg.append(...labels);
  $("map").replaceChildren(svg);
  write($("map-words"), words.length ? `Between clusters: ${words.join("; ")}.` : "Nothing crosses between clusters now: nobody watches from afar.");
}

// ---- Tables

function rows(table, list) {
  $(table).tBodies[0].replaceChildren(...(list.length ? list : [element("tr", {}, element("td", { colspan: 8, class: "quiet" }, "None."))]));
}

const cell = (...content) => element("td", {}, ...content);
const list = (names) => Object.entries(Object.groupBy(names, (n) => n)).map(([n, all]) => (all.length > 1 ? `${n} ×${all.length}` : n)).join(", ") || "–";

function drawTables(cascade) {
  const all = streamsOf(cascade);
  const told = reports(cascade).map((n) => n.report);
  const sum = (of) => told.reduce((s, r) => s + of(r), 0);
  const totals = {
    "Clusters": number(new Set(cascade.nodes.map((n) => n.cluster)).size),
    "Nodes": `${number(cascade.nodes.filter((n) => health(n)[0] === "good").length)} of ${number(cascade.nodes.length)} ready`,
    "Streams": number(all.length),
    "Relays": number(sum((r) => r.relays.filter(running).length)),
    "Came from other clusters": bytes(sum((r) => r.carried)),
    "Did not have to, thanks to the cascade": bytes(sum((r) => r.saved)),
  };
  $("totals").replaceChildren(...Object.entries(totals).map(([k, v]) => element("div", {}, element("dt", {}, k), element("dd", {}, v))));
  rows("streams", all.map((s) => element("tr", { "data-stream": s.name }, element("th", { scope: "row" }, s.name), cell(list(s.origins)), cell(String(s.epoch || "–")),
    cell(list(s.holders)), cell([...s.viewers].map(([c, n]) => `${c} ${number(n)}`).join(", ") || "none"), cell(mbit(s.now)), cell(bytes(s.sofar)))));
  rows("nodes", cascade.nodes.map((n) => {
    const [state, words] = health(n);
    return element("tr", {}, element("th", { scope: "row" }, element("button", {
      type: "button", class: "link", title: n.node, onclick: () => { choose(n.node); $("node-title").focus(); },
    }, `${short(n.node)}${n.node === cascade.here ? " (here)" : ""}`)), cell(n.cluster || "–"), cell(element("span", { class: `state ${state}` }, words)),
    cell(n.rttMs ? `${number(n.rttMs)} ms` : "–"), cell(n.report ? String(n.report.published.length) : "–"),
    cell(n.report ? String(n.report.relays.filter(running).length) : "–"), cell(n.report?.adapter ?? "–"), cell(n.version || "–"));
  }));
}

function choose(node) {
  shownNode = node;
  history.replaceState(null, "", `#node=${encodeURIComponent(node)}`);
  drawNode(last);
}

const ago = (since, now) => duration(Math.max(0, (new Date(now) - new Date(since)) / 1000));

function drawNode(cascade) {
  const n = cascade.nodes.find((x) => x.node === shownNode);
  $("node").hidden = !n;
  if (!n) return;
  write($("node-title"), `Node ${n.node} of ${n.cluster || "an unknown cluster"}`);
  const name = (id) => { const o = cascade.nodes.find((x) => x.node === id); return o ? `${o.cluster}/${short(id)}` : short(id); };
  const open = new Set([...$("node-body").querySelectorAll("details[open]")].map((d) => d.dataset.stream));
  const content = [];
  if (n.error) content.push(element("p", {}, `Trouble: ${n.error}`));
  if (n.report?.serverError) content.push(element("p", {}, `Its media server: ${n.report.serverError}`));
  if (n.report) {
    content.push(element("p", { class: "quiet" }, `${n.report.adapter} · version ${n.report.version} · came from other clusters ${bytes(n.report.carried)} · spared ${bytes(n.report.saved)}`));
    content.push(element("p", {}, n.report.published.length
      ? `Published here: ${n.report.published.map((p) => `${p.stream} (${p.tracks.join(", ") || "codecs not known"}${p.viewers < 0 ? "" : `, ${plural(p.viewers, "viewer")}`}${p.counts ? "" : ", another publication of this name is shown"})`).join("; ")}.`
      : "Nothing is published here."));
    content.push(...n.report.relays.map((r) => element("details", { "data-stream": r.stream, open: open.has(r.stream) || n.report.relays.length === 1 },
      element("summary", {}, element("strong", {}, r.stream), ` · ${r.state}${r.why ? ` (${r.why})` : ""}${r.path ? ` · ${r.path.map(name).join(" → ")}` : ""}`),
      element("dl", {}, ...Object.entries({
        "Viewers": number(r.viewers), "Epoch": String(r.epoch), "Live for": r.liveSince ? ago(r.liveSince, cascade.at) : undefined,
        "Bit rate": mbit(rate(n.node, r.stream)), "Packets": `${number(r.packets)}, ${number(r.lost)} missing, ${number(r.repaired)} repaired`,
        "Asked for again (NACK)": number(r.nacks), "Key frames asked for": number(r.keyFrameRequests),
        "Round trip to the parent": r.rttMs ? `${number(r.rttMs, 1)} ms` : undefined, "Time through the relay": r.addedMs ? `${number(r.addedMs, 2)} ms` : undefined,
        "Codecs": r.tracks.join(", ") || undefined, "Second copy from": r.standby ? name(r.standby) : undefined,
        "Changes of parent": r.changes ? number(r.changes) : undefined, "Last trouble": r.lastError || undefined,
      }).filter(([, v]) => v !== undefined).map(([k, v]) => element("div", {}, element("dt", {}, k), element("dd", {}, v)))),
      r.steps.length ? element("ol", { class: "steps" }, ...r.steps.map((s) => element("li", {}, `${s.name}, after ${number(s.ms)} ms`))) : undefined,
    )));
    if (!n.report.relays.length) content.push(element("p", {}, "It relays nothing."));
  }
  $("node-body").replaceChildren(...content);
}

function draw(cascade) {
  measure(cascade);
  $("view").hidden = false;
  drawMap(cascade);
  drawTables(cascade);
  drawNode(cascade);
  write($("status"), "Live.");
  window.sidestream.cascade = { ...cascade, flows: flowsOf(cascade), streams: streamsOf(cascade).map((s) => ({ ...s, viewers: Object.fromEntries(s.viewers) })) };
}

// ---- Watching

async function follow() {
  for (;;) {
    const token = sessionStorage.getItem(shelf);
    try {
      await readEvents("api/cascade/events", token ? { Authorization: `Bearer ${token}` } : {}, undefined, (name, data) => { if (name === "cascade") draw(data); });
      write($("status"), "The node ended the connection. Trying again …");
    } catch (e) {
      if (e.status === 401) {
        sessionStorage.removeItem(shelf);
        $("token-form").hidden = false;
        $("view").hidden = true;
        write($("status"), token ? "This token is not the console's." : "Operators show the console's token here (SIDESTREAM_CONSOLE_TOKEN).");
        return;
      }
      write($("status"), e.status === 503 ? "Too many watch the cascade at this node. Trying again …" : "The node does not answer. What you see may be old. Trying again …");
    }
    await new Promise((resolve) => { setTimeout(resolve, 2000); });
  }
}

$("token-form").addEventListener("submit", (e) => {
  e.preventDefault();
  sessionStorage.setItem(shelf, e.target.token.value.trim());
  e.target.token.value = "";
  $("token-form").hidden = true;
  follow();
});

loadLand().then(follow, () => write($("status"), "The map cannot be loaded. Load the page anew."));
