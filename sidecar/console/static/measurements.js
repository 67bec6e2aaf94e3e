// Measurements side by side: those of this tab, those of files, and two that are made at the same time.

import { $, config, distances, download, element, nearest, number, pagesOf, streams, write } from "./shell.js";
import { endpoint, explain, pause, Session } from "./whip.js";
import { figures, second, watch } from "./stats.js";
import { Plot } from "./plots.js";
import { kept, keepAll, Measurement, pack, summary, unpack } from "./measure.js";

const form = $("compare");
const colours = ["--line-a", "--line-b", "--line-c", "--line-d"];
let list = kept();
let plots = [];
let controller;

// ---- The list

function remember() {
  if (!keepAll(list)) write($("list-status"), "There is no room to remember these in the browser: save them in a file before you leave.");
  render();
}

function render() {
  $("save").disabled = $("clear").disabled = !list.length;
  $("summary").hidden = !list.length;
  if (!list.length) write($("list-status"), "Nothing yet. Compare above, record while you play, or load a file.");
  const head = element("tr", {}, element("th", { scope: "col" }, "Measurement"), ...list.map((m, i) => element("th", { scope: "col" },
    element("span", { class: `key key-${i % colours.length}`, "aria-hidden": "true" }), m.name,
    element("small", {}, `${m.about.path?.length > 1 ? `${m.about.path.join(" → ")} → viewer · ` : ""}${new Date(m.about.at).toLocaleString()}`),
    element("span", { class: "row" },
      element("button", { type: "button", "aria-label": `CSV of ${m.name}`, onclick: () => download(`${m.file}.csv`, "text/csv", m.csv()) }, "CSV"),
      element("button", { type: "button", "aria-label": `JSON of ${m.name}`, onclick: () => download(`${m.file}.json`, "application/json", pack([m])) }, "JSON"),
      element("button", { type: "button", "aria-label": `Forget ${m.name}`, onclick: () => { list = list.filter((other) => other !== m); remember(); } }, "Forget"),
    ))));
  $("summary").tHead.replaceChildren(head);
  const sums = list.map(summary);
  const rows = list.length ? Object.keys(sums[0]) : [];
  $("summary").tBodies[0].replaceChildren(...rows.filter((row) => sums.some((s) => s[row] !== undefined)).map((row) => element("tr", {},
    element("th", { scope: "row" }, row),
    ...sums.map((s) => element("td", { "data-row": row }, s[row] === undefined ? "–" : number(s[row], Number.isInteger(s[row]) ? 0 : 1))),
  )));
  for (const plot of plots) plot.close();
  const length = Math.max(0, ...list.map((m) => m.samples.length));
  const times = Array.from({ length }, (_, i) => i + 1);
  plots = (list.length ? figures : []).filter((f) => f.plot && list.some((m) => m.samples.some((s) => s[f.key] !== undefined))).map((f) => {
    const plot = new Plot($("plots"), `${f.label}, ${f.unit}`, list.map((m, i) => [m.name, colours[i % colours.length]]), 150);
    plot.set(times, ...list.map((m) => times.map((t) => m.samples[t - 1]?.[f.key] ?? null)));
    return plot;
  });
  window.sidestream.measurements = sums;
}

$("load").addEventListener("change", async () => {
  const faults = [];
  for (const file of $("load").files) {
    try {
      if (file.size > 20e6) throw new Error("This file is too large.");
      list.push(...unpack(await file.text()));
    } catch (e) {
      faults.push(`${file.name}: ${e.message}`);
    }
  }
  $("load").value = "";
  write($("list-status"), faults.join(" "));
  remember();
});
$("save").addEventListener("click", () => download(`sidestream-measurements-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.json`, "application/json", pack(list)));
$("clear").addEventListener("click", () => { list = []; remember(); });

// ---- Two at the same time

/** Plays a stream from a region into a video, measures it, and resolves with the measurement when the seconds are over. */
async function run(place, stream, seconds, loss, path, tick, signal) {
  const [region, video] = [place.region, $(place.video)];
  const pc = () => {
    const connection = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    for (const kind of ["video", "audio"]) connection.addTransceiver(kind, { direction: "recvonly" });
    const media = new MediaStream();
    connection.addEventListener("track", (e) => { media.addTrack(e.track); video.srcObject = media; });
    return connection;
  };
  const session = await Session.open(endpoint("whep", stream, pagesOf(region)), form.token.value, pc, signal);
  const measurement = new Measurement({ stream, region, path, lossPercent: loss });
  try {
    if (loss) await session.lose(loss);
    const over = new Promise((resolve, reject) => {
      session.failed(signal).then(() => reject(new Error(`${region} was lost.`)), reject);
      watch(session, (now, before) => {
        const picture = now["in video"] ?? {};
        if (!before || !picture.framesDecoded) return; // it begins with the first picture
        measurement.add(second(now, before));
        tick(measurement.samples.length / seconds);
        if (measurement.samples.length >= seconds) resolve();
      }).catch(reject);
    });
    const late = pause(seconds + 20, signal).then(() => { throw new Error(`${region} shows no picture.`); });
    await Promise.race([over, late]);
  } finally {
    session.close();
    video.srcObject = null;
  }
  return measurement;
}

async function compare() {
  controller?.abort();
  const mine = new AbortController();
  controller = mine;
  const stream = form.stream.value.trim();
  const [seconds, loss] = [Number(form.seconds.value), Number(form.loss.value)];
  const places = [{ region: form.first.value, video: "first" }, { region: form.second.value, video: "second" }];
  const known = (await streams(form.token.value).catch(() => [])).find((s) => s.name === stream);
  form.stop.disabled = false;
  $("compare-videos").hidden = $("compare-progress").hidden = false;
  for (const p of places) {
    const caption = $(p.video).nextElementSibling;
    write(caption, `from ${p.region}`);
  }
  write($("compare-status"), `Playing “${stream}” from ${places[0].region} and ${places[1].region} …`);
  try {
    const done = [0, 0];
    // The path of a relay is known when it is there, after it has been asked for.
    const results = await Promise.all(places.map((p, i) => run(p, stream, seconds, loss, known?.ways.find((w) => w.path.at(-1) === p.region)?.path
      ?? (known ? [known.origin, p.region] : [p.region]), (share) => { done[i] = share; $("compare-progress").value = Math.min(...done); }, mine.signal)));
    list = [...list, ...results];
    remember();
    const [a, b] = results.map(summary);
    write($("compare-status"), `Done. From ${places[0].region}: ${number(a.Freezes ?? 0)} freezes, ${number(a["Frozen, s"] ?? 0, 1)} s frozen. `
      + `From ${places[1].region}: ${number(b.Freezes ?? 0)} freezes, ${number(b["Frozen, s"] ?? 0, 1)} s frozen.`);
  } catch (e) {
    if (!mine.signal.aborted) write($("compare-status"), explain(e, stream, false));
    else write($("compare-status"), "Stopped.");
    mine.abort();
  }
  form.stop.disabled = true;
  $("compare-videos").hidden = $("compare-progress").hidden = true;
  $("compare-progress").value = 0;
}

form.addEventListener("submit", (e) => { e.preventDefault(); compare(); });
form.stop.addEventListener("click", () => controller?.abort());
window.addEventListener("pagehide", () => controller?.abort());

// ---- The page

async function prepare() {
  for (const select of [form.first, form.second]) select.replaceChildren(...config.regions.map(({ name }) => element("option", {}, name)));
  form.stream.value = config.stream;
  const [far, known] = await Promise.all([distances(), streams("").catch(() => [])]);
  $("names").replaceChildren(...known.map((s) => element("option", { value: s.name })));
  const stream = known.find((s) => s.name === config.stream) ?? known[0];
  if (stream) form.stream.value = stream.name;
  const near = nearest(far) ?? config.region;
  form.second.value = near;
  const others = config.regions.map((r) => r.name).filter((name) => name !== near);
  form.first.value = stream && stream.origin !== near ? stream.origin : others.at(-1) ?? near;
  form.dataset.ready = "";
}

render();
prepare();
