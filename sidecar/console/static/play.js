// The player: plays a stream from the nearest region or one that is picked, shows what arrives, and records it.

import { $, config, distances, element, nearest, number, pagesOf, streams, write } from "./shell.js";
import { endpoint, explain, pause, rels, Session, temporary, unreachable } from "./whip.js";
import { figures, figure, second, show, shown, watch } from "./stats.js";
import { Plot, title } from "./plots.js";
import { Measurement, keep, maxSeconds } from "./measure.js";

const minutes = 5; // that are plotted
const [form, stage, video] = [$("form"), $("status").closest(".stage"), $("player")];
let controller;
let session;
let measuring;
let far = {}; // round trips to regions
let listed = [];
let history = []; // of seconds

function say(state, words) {
  stage.dataset.state = state;
  write($("status"), words);
}

// ---- Plots

const plots = figures.filter((f) => f.plot).map((f) => {
  const other = f.with && figure(f.with);
  return { f, other, plot: new Plot($("plots"), title(f), [[f.label, "--line-a"], ...(other ? [[other.label, "--line-b"]] : [])]) };
});

function draw() {
  const times = history.map((h, i) => i - history.length + 1);
  for (const { f, other, plot } of plots) {
    const of = (key) => history.map((h) => h[key] ?? null);
    plot.set(times, of(f.key), ...(other ? [of(other.key)] : []));
  }
}

// ---- Regions and streams

function region() {
  return form.region.value || nearest(far) || config.region;
}

function offerRegions() {
  const chosen = form.region.value;
  const near = nearest(far);
  const words = (name) => (far[name] === undefined ? name : `${name} · ${number(far[name])} ms`);
  form.region.replaceChildren(
    element("option", { value: "" }, near ? `Nearest (${words(near)})` : "Nearest"),
    ...config.regions.map(({ name }) => element("option", { value: name }, words(name))),
  );
  form.region.value = chosen;
  form.region.closest("label").hidden = config.regions.length < 2;
}

async function look() {
  try {
    listed = await streams(form.token.value);
  } catch {
    return; // as it was
  }
  $("names").replaceChildren(...listed.map((s) => element("option", { value: s.name })));
  $("streams").hidden = !config.list;
  $("list").replaceChildren(...(listed.length ? listed.map((s) => element("li", {},
    element("button", { type: "button", class: "card", onclick: () => { form.stream.value = s.name; start(); } },
      element("strong", {}, s.name), element("span", {}, `from ${s.origin}`),
      element("span", { class: "quiet" }, s.ways.length > 1 ? `also in ${s.ways.map((w) => w.path.at(-1)).filter((r) => r !== s.origin).join(", ")}` : "nowhere else yet")),
  )) : [element("li", { class: "quiet" }, "Nobody is publishing. Open Publish to begin.")]));
  showWay();
}

/** How the stream comes here: the regions on the way, and from the last one to us. */
function showWay() {
  const at = region();
  const stream = listed.find((s) => s.name === form.stream.value);
  const way = stream?.ways.find((w) => w.path.at(-1) === at);
  if (!session || !stream) return write($("way"), "");
  const path = [...new Set(way ? way.path : [stream.origin, at])];
  // What is told is the round trip from the origin to each region; a hop's is what it adds.
  const upTo = (i) => (i < 1 ? 0 : stream.ways.find((w) => w.path.join(" ") === path.slice(0, i + 1).join(" "))?.rttMs);
  const words = (name, ms) => (ms > 0 ? `${name} (${number(ms)} ms)` : name);
  const hops = path.map((name, i) => words(name, upTo(i) - upTo(i - 1)));
  write($("way"), `The way of the stream, with each hop’s round trip: ${[...hops, words("you", far[at])].join(" → ")}.`);
  return undefined;
}

// ---- Playing

async function start() {
  stop();
  const mine = new AbortController();
  controller = mine;
  form.stop.disabled = false;
  history = [];
  try {
    await play(form.stream.value.trim(), form.token.value, mine.signal);
  } catch (e) {
    if (mine.signal.aborted) return;
    stop();
    say("trouble", e.message);
  }
}

function stop() {
  controller?.abort();
  controller = undefined;
  leave();
  form.stop.disabled = true;
  $("options").hidden = true;
  finish();
  say("idle", "Stopped.");
}

function leave() {
  session?.close();
  session = undefined;
  show($("numbers"), {});
  showWay();
}

/** Plays session after session until the signal says stop. A region that is lost gives way to the next nearest. */
async function play(stream, token, signal) {
  let lost;
  for (let failures = 0; ; failures++) {
    let wait = Math.min(2 ** failures, 15);
    let words;
    const at = region();
    say("busy", `Asking ${at} for “${stream}” …`);
    try {
      const next = await open(stream, token, at, signal);
      words = await next(() => { failures = 0; });
      wait = words === "moved" ? 0 : 1;
      words = "The connection was lost.";
    } catch (e) {
      if (signal.aborted) throw e;
      words = explain(e, stream, false);
      if (!temporary(e)) throw new Error(words);
      wait = Math.max(e.retryAfter ?? wait, 1);
      lost = unreachable(e);
    }
    leave();
    if (wait) say("trouble", `${words} Trying again in ${wait} second${wait === 1 ? "" : "s"}.`);
    if (lost && !form.region.value) far = await distances();
    if (wait) await pause(wait, signal);
    lost = false;
    offerRegions();
  }
}

/** Opens one session, and gives what lasts as long as it does. */
async function open(stream, token, at, signal) {
  const began = performance.now();
  let firstFrame;
  const connect = (counter) => {
    const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    if (!counter) {
      pc.addTransceiver("video", { direction: "recvonly" });
      pc.addTransceiver("audio", { direction: "recvonly" });
    }
    const media = new MediaStream();
    pc.addEventListener("track", (e) => {
      media.addTrack(e.track);
      video.srcObject = media;
    });
    return pc;
  };
  session = await Session.open(endpoint("whep", stream, pagesOf(at)), token, connect, signal);
  if (measuring && !measuring.about.region.split(", ").includes(at)) {
    measuring.about.region += `, ${at}`; // it went on there
    measuring.about.path = [];
  }
  const mine = session;
  offer(mine);
  return (works) => new Promise((resolve, reject) => {
    say("busy", `Connecting to “${stream}” …`);
    showWay();
    video.addEventListener("loadeddata", () => {
      firstFrame ??= performance.now() - began;
      works();
      say("live", "Live");
      $("sound").hidden = !video.muted;
    }, { signal, once: true });
    mine.pc.addEventListener("connectionstatechange", () => {
      if (mine.pc.connectionState === "disconnected") say("trouble", "The connection is interrupted. Waiting for it …");
      if (mine.pc.connectionState === "connected") {
        if (firstFrame === undefined) say("busy", "Connected. Waiting for the picture …");
        else say("live", "Live");
      }
    });
    mine.failed(signal).then(() => resolve("lost"), reject);
    mine.events(["reconnect", "layers", "inactive", "active"], (name, data) => {
      if (name === "reconnect") resolve("moved");
      if (name === "inactive") say("busy", "The publisher is away. Waiting for it …");
      if (name === "active") say("live", "Live");
      if (name === "layers") layers(mine, data);
    }).catch(() => {}); // without them it plays as well
    watch(mine, (now, before) => tell(stream, at, mine, now, before, firstFrame)).catch(() => {});
  });
}

function tell(stream, at, mine, now, before, firstFrame) {
  if (mine.closed) return;
  const s = second(now, before);
  const [picture, audio] = [now["in video"] ?? {}, now["in audio"] ?? {}];
  history.push(s);
  if (history.length > minutes * 60) history.shift();
  if (measuring) measure(s);
  const last = before && history.at(-2);
  window.sidestream.stats = {
    stream, region: at, state: mine.pc.connectionState, firstFrameMs: firstFrame, ...s,
    roundTripMs: s.rttMs, framesDecoded: picture.framesDecoded, width: picture.frameWidth, height: picture.frameHeight,
    bytesReceived: (picture.bytesReceived ?? 0) + (audio.bytesReceived ?? 0), codec: now.videoCodec, audioEnergy: audio.totalAudioEnergy,
    packetsReceived: (picture.packetsReceived ?? 0) + (audio.packetsReceived ?? 0),
  };
  show($("numbers"), {
    "Round trip": shown(figure("rttMs"), s.rttMs),
    "First frame after": firstFrame === undefined ? undefined : `${number(firstFrame)} ms`,
    "Video": shown(figure("videoKbps"), s.videoKbps),
    "Audio": shown(figure("audioKbps"), s.audioKbps),
    "Picture": picture.frameWidth ? `${picture.frameWidth} × ${picture.frameHeight}` : undefined,
    "Frame rate": s.fps === undefined ? undefined : `${number(s.fps)} per second`,
    "Packets": shown(figure("packets"), s.packets),
    "Packets lost": s.lossPercent === undefined ? undefined : [shown(figure("lossPercent"), s.lossPercent), s.lossPercent > 0],
    "Asked for again": picture.nackCount === undefined ? undefined : number(picture.nackCount),
    "Key frames asked for": picture.pliCount === undefined ? undefined : number(picture.pliCount),
    "Jitter buffer": shown(figure("bufferMs"), s.bufferMs),
    "Freezes": picture.freezeCount === undefined ? undefined
      : [`${number(picture.freezeCount)} · ${number(picture.totalFreezesDuration ?? 0, 1)} s`, last && s.freezes > last.freezes],
    "Frames decoded": picture.framesDecoded === undefined ? undefined : number(picture.framesDecoded),
    "Frames dropped": picture.framesDropped === undefined ? undefined : number(picture.framesDropped),
    "Key frames": picture.keyFramesDecoded === undefined ? undefined : number(picture.keyFramesDecoded),
    "Since the capture": shown(figure("latencyMs"), s.latencyMs),
    "Codecs": [now.videoCodec, now.audioCodec].filter(Boolean).join(", ") || undefined,
  });
  draw();
}

// ---- What can be set of a session

function offer(mine) {
  $("options").hidden = false;
  $("loss-field").hidden = !mine.extension(rels.loss);
  $("layer-field").hidden = true;
  if (mine.extension(rels.loss) && Number($("loss").value) > 0) lose(mine);
}

function lose(mine) {
  const percent = Number($("loss").value);
  $("loss-value").textContent = `${percent} %`;
  if (measuring) measuring.about.lossPercent = percent;
  mine?.lose(percent).catch((e) => { $("loss-value").textContent = e.message; });
}

function layers(mine, sections) {
  const found = Object.entries(sections).flatMap(([mid, section]) => {
    const list = Array.isArray(section) ? section : [...(section.active ?? []), ...(section.inactive ?? [])];
    return list.map((l) => ({ mid, id: l.encodingId ?? l.rid, bitrate: l.bitrate }));
  }).filter((l) => l.id);
  $("layer-field").hidden = found.length < 2;
  const chosen = $("layer").value;
  $("layer").replaceChildren(element("option", { value: "" }, "Chosen for you"), ...found.map((l) => element("option", { value: `${l.mid} ${l.id}` },
    l.bitrate ? `${l.id} · ${number(l.bitrate / 1000)} kbit/s` : l.id)));
  $("layer").value = [...$("layer").options].some((o) => o.value === chosen) ? chosen : "";
  $("layer").onchange = () => {
    const [mid, id] = $("layer").value.split(" ");
    mine.choose(mid || undefined, id ?? null).catch((e) => say("trouble", e.message));
  };
}

// ---- Measurements

function begin() {
  const at = region();
  const way = listed.find((s) => s.name === form.stream.value)?.ways.find((w) => w.path.at(-1) === at);
  measuring = new Measurement({ stream: form.stream.value, region: at, path: way?.path ?? [], lossPercent: Number($("loss").value) });
  $("record").textContent = "Stop recording";
}

function measure(s) {
  measuring.add(s);
  write($("record-status"), `Recording: ${measuring.samples.length} s`);
  if (measuring.samples.length >= maxSeconds) finish();
}

function finish() {
  if (!measuring) return;
  const done = measuring;
  measuring = undefined;
  $("record").textContent = "Record a measurement";
  if (!done.samples.length) return write($("record-status"), "");
  keep(done);
  $("record-status").replaceChildren("Recorded ", `${done.samples.length} s. `, element("a", { href: "measurements" }, "See and compare"));
}

// ---- The page

form.addEventListener("submit", (e) => { e.preventDefault(); start(); });
form.stop.addEventListener("click", stop);
form.region.addEventListener("change", () => { if (session) start(); });
$("loss").addEventListener("input", () => { $("loss-value").textContent = `${$("loss").value} %`; });
$("loss").addEventListener("change", () => lose(session));
$("record").addEventListener("click", () => (measuring ? finish() : begin()));
$("sound").addEventListener("click", () => {
  video.muted = false;
  $("sound").hidden = true;
  video.play().catch(() => {});
});
window.addEventListener("pagehide", () => stop());

const asked = new URLSearchParams(location.search);
form.stream.value = asked.get("stream") || config.stream;
show($("numbers"), {});
offerRegions();
if (config.regions.some((r) => r.name === asked.get("from"))) form.region.value = asked.get("from");
const measured = config.regions.length > 1 ? distances().then((found) => { far = found; offerRegions(); showWay(); }) : Promise.resolve();
look();
setInterval(look, 3000);
if (form.region.value) start();
else measured.finally(start);
