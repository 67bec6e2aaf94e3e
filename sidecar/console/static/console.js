// The page's code: a WHEP player and a WHIP publisher with their statistics. It speaks to the gateway beside which the
// page lies, and to nothing else.

const config = JSON.parse(document.getElementById("config").textContent);
const $ = (id) => document.getElementById(id);

// For browser tests: the figures of the last second, as shown.
window.sidestream = { stats: {} };

// ---- WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep)

/** What a server says when it does not open a session. */
class Refusal extends Error {
  constructor(status, detail, retryAfter) {
    super(detail || `The server answered ${status}.`);
    this.status = status;
    this.retryAfter = retryAfter; // seconds, or undefined
  }

  static async from(response) {
    let detail = "";
    if ((response.headers.get("Content-Type") || "").startsWith("application/problem+json")) { // RFC 9457
      const problem = await response.json().catch(() => ({}));
      detail = problem.detail || problem.title || "";
    }
    const after = parseInt(response.headers.get("Retry-After"), 10);
    return new Refusal(response.status, detail, Number.isNaN(after) ? undefined : after);
  }
}

/** An open session: its connection, and the URL at which it is changed and ended. */
class Session {
  constructor(pc, token) {
    this.pc = pc;
    this.token = token;
    this.candidates = [];
    this.closed = false;
    this.url = null;
    this.etag = null;
    pc.addEventListener("icecandidate", (e) => {
      if (e.candidate?.candidate) this.candidates.push(e.candidate);
      else if (!e.candidate) this.trickle();
    });
  }

  /**
   * Opens a session. connect makes a connection with its tracks; a server that answers with an offer of its own gets a
   * second one.
   */
  static async open(endpoint, token, connect, signal) {
    let session = new Session(connect(), token);
    try {
      // The offer goes out before candidates are gathered: the answer names the ICE servers to gather them with.
      const offer = await session.pc.createOffer();
      const response = await session.request(endpoint, "POST", "application/sdp", offer.sdp, signal);
      const counter = response.status === 406 && (response.headers.get("Content-Type") || "").startsWith("application/sdp");
      if (!response.ok && !counter) throw await Refusal.from(response);
      if (counter) {
        session.close();
        session = new Session(connect(true), token);
      }
      const at = response.headers.get("Location");
      if (!at) throw new Error("The server opened a session and does not say where: its answer has no Location.");
      session.url = new URL(at, response.url);
      session.etag = response.headers.get("ETag");
      const sdp = await response.text();
      const iceServers = parseICEServers(response.headers.get("Link"));
      if (iceServers.length) session.pc.setConfiguration({ iceServers });
      if (counter) {
        await session.pc.setRemoteDescription({ type: "offer", sdp });
        await session.pc.setLocalDescription();
        const answer = session.pc.localDescription.sdp;
        const accepted = await session.request(session.url, "PATCH", "application/sdp", answer, signal);
        if (!accepted.ok) throw await Refusal.from(accepted);
      } else {
        await session.pc.setLocalDescription(offer);
        await session.pc.setRemoteDescription({ type: "answer", sdp });
      }
      signal.throwIfAborted();
      return session;
    } catch (e) {
      session.close();
      throw e;
    }
  }

  request(url, method, type, body, signal) {
    const headers = type ? { "Content-Type": type } : {};
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    if (type === "application/trickle-ice-sdpfrag" && this.etag) headers["If-Match"] = this.etag;
    return fetch(url, { method, headers, body, signal, cache: "no-store", keepalive: method === "DELETE" });
  }

  /** Tells the server all candidates at once (RFC 8840), unless it has been found without them. */
  async trickle() {
    if (!this.url || this.pc.connectionState === "connected" || !this.candidates.length) return;
    const sdp = this.pc.localDescription.sdp;
    const first = this.candidates[0];
    const media = sdp.match(/^m=.*$/gm)[first.sdpMLineIndex ?? 0].replace(/^(m=\S+) \d+/, "$1 9");
    const lines = [
      sdp.match(/^a=ice-ufrag:.*$/m)[0], sdp.match(/^a=ice-pwd:.*$/m)[0], media, `a=mid:${first.sdpMid}`,
      ...this.candidates.filter((c) => c.sdpMid === first.sdpMid).map((c) => `a=${c.candidate}`), "a=end-of-candidates", "",
    ].map((l) => l.trim());
    // A server that does not take candidates finds us by our checks.
    await this.request(this.url, "PATCH", "application/trickle-ice-sdpfrag", lines.join("\r\n")).catch(() => {});
  }

  /**
   * Ends the session at the server, also while the page is being left. The connection is closed after it: the server would
   * end the session at its goodbye, and then not know what to delete.
   */
  close() {
    if (this.closed) return;
    this.closed = true;
    const deleted = this.url ? this.request(this.url, "DELETE", "", null, AbortSignal.timeout(3000)) : Promise.resolve();
    deleted.catch(() => {}).finally(() => this.pc.close());
  }

  /** Resolves when the connection has ended: by the server's goodbye, or by a silence of some seconds. */
  failed(signal) {
    return new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason));
      this.pc.addEventListener("connectionstatechange", () => {
        if (this.pc.connectionState === "failed") resolve();
        if (this.pc.connectionState === "disconnected") {
          setTimeout(() => { if (this.pc.connectionState !== "connected") resolve(); }, 4000);
        }
      });
      const dtls = this.pc.getSenders()[0]?.transport ?? this.pc.getReceivers()[0]?.transport;
      dtls?.addEventListener("statechange", () => { if (dtls.state === "closed") resolve(); });
    });
  }
}

/** The ICE servers of a Link header (RFC 8288): <turn:host>; rel="ice-server"; username="u"; credential="c". */
function parseICEServers(header) {
  const servers = [];
  for (const [, url, rest] of (header || "").matchAll(/<([^>]*)>((?:\s*;\s*[\w-]+\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^",;]*))*)/g)) {
    const params = {};
    for (const [, name, quoted, plain] of rest.matchAll(/;\s*([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^",;]*))/g)) {
      params[name.toLowerCase()] = quoted === undefined ? plain.trim() : quoted.replace(/\\(.)/g, "$1");
    }
    if (params.rel !== "ice-server") continue;
    servers.push(params.username ? { urls: url, username: params.username, credential: params.credential } : { urls: url });
  }
  return servers;
}

function endpoint(kind, stream) {
  const path = stream.split("/").map(encodeURIComponent).join("/");
  return new URL(`${config.base}${kind}/${path}`, location.href.split(/[?#]/)[0]);
}

// ---- What went wrong, in words that say what to do

function explain(error, stream, publishing) {
  const name = `“${stream}”`;
  if (!(error instanceof Refusal)) {
    if (error instanceof TypeError) return "The server cannot be reached. Check that it is running and that you are online.";
    return error.message;
  }
  switch (error.status) {
    case 401: return "The server asks for an access token. Enter it below and try again.";
    case 403: return `This access token does not allow ${publishing ? "publishing" : "watching"} ${name}. Enter another one below.`;
    case 404:
    case 409:
      if (publishing) return `${name} cannot be published now: ${error.message} Stop the other publisher or choose another name.`;
      return `Nobody is publishing ${name} right now. Check the name, or publish it yourself.`;
    case 429: return "Too many requests. The server wants a pause.";
    case 503: return publishing ? "The server has no room for another stream now." : `${name} is on its way here, or the server is busy.`;
    default: return error.message;
  }
}

/** Whether it may work later without anybody doing something. */
function temporary(error) {
  return !(error instanceof Refusal) ? error instanceof TypeError : [404, 408, 409, 429].includes(error.status) || error.status >= 500;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
  });
}

// ---- A tab: form, picture, words, figures. The player and the publisher differ in what they connect.

class Tab {
  constructor(kind, run) {
    this.form = $(`${kind}-form`);
    this.status = $(`${kind}-status`);
    this.figures = $(`${kind}-stats`);
    this.stage = this.status.closest(".stage");
    this.video = this.stage.querySelector("video");
    this.run = run;
    this.controller = null;
    this.session = null;
    this.form.addEventListener("submit", (e) => { e.preventDefault(); this.start(); });
    this.form.stop.addEventListener("click", () => this.stop());
  }

  say(state, words) {
    this.stage.dataset.state = state;
    if (this.status.textContent !== words) this.status.textContent = words;
  }

  async start() {
    this.stop();
    const controller = new AbortController();
    this.controller = controller;
    this.form.stop.disabled = false;
    try {
      await this.run(this, this.form.stream.value.trim(), this.form.token.value, controller.signal);
    } catch (e) {
      if (controller.signal.aborted) return;
      this.stop();
      this.say("trouble", e.message);
    }
  }

  stop() {
    this.controller?.abort();
    this.controller = null;
    this.leave();
    this.form.stop.disabled = true;
    this.say("idle", "Stopped.");
  }

  leave() {
    this.session?.close();
    this.session = null;
    this.video.srcObject = null;
    show(this.figures, {});
  }

  /** Opens session after session until the signal says stop; opened is called with each. */
  async keep(kind, stream, token, connect, opened, signal) {
    for (let failures = 0; ; failures++) {
      let words = "The connection was lost.";
      let wait = Math.min(2 ** failures, 15);
      try {
        this.session = await Session.open(endpoint(kind, stream), token, connect, signal);
        await Promise.race([this.session.failed(signal), opened(this.session, () => { failures = 0; })]);
        wait = 1;
      } catch (e) {
        if (signal.aborted) throw e;
        words = explain(e, stream, kind === "whip");
        if (!temporary(e)) throw new Error(words);
        wait = Math.max(e.retryAfter ?? wait, 1);
      }
      this.session?.close();
      this.session = null;
      show(this.figures, {});
      this.say("trouble", `${words} Trying again in ${wait} second${wait === 1 ? "" : "s"}.`);
      await pause(wait, signal);
    }
  }
}

/** Calls look with the connection's statistics once a second, for as long as it is open. */
async function watchStats(session, look) {
  let before = null;
  while (!session.closed) {
    const now = digest(await session.pc.getStats());
    look(now, before);
    before = now;
    await new Promise((resolve) => { setTimeout(resolve, 1000); });
  }
  return new Promise(() => {}); // what happens next is said by others
}

/** A report by what is in it: the selected pair, and each way's audio and video. */
function digest(report) {
  const found = { time: performance.now() };
  const codec = (entry) => report.get(entry?.codecId)?.mimeType?.split("/")[1];
  for (const s of report.values()) {
    if (s.type === "transport") found.pair = report.get(s.selectedCandidatePairId);
    if (["inbound-rtp", "outbound-rtp", "remote-inbound-rtp"].includes(s.type)) found[`${s.type} ${s.kind}`] = s;
  }
  for (const kind of ["video", "audio"]) {
    found[`${kind} codec`] = codec(found[`inbound-rtp ${kind}`] || found[`outbound-rtp ${kind}`]);
  }
  return found;
}

const number = (n, digits = 0) => n.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const milliseconds = (s) => (s === undefined ? undefined : `${number(s * 1000)} ms`);

function bitrate(now, before, field) {
  let bits = 0;
  for (const key of Object.keys(now).filter((k) => k.includes("bound-rtp ") && !k.startsWith("remote"))) {
    bits += 8 * ((now[key][field] ?? 0) - (before?.[key]?.[field] ?? 0));
  }
  if (!before) return undefined;
  return `${number(bits / (now.time - before.time))} kbit/s`; // bits per millisecond
}

function packetsLost(found) {
  return (found["inbound-rtp video"]?.packetsLost ?? 0) + (found["inbound-rtp audio"]?.packetsLost ?? 0);
}

/** Shows figures; one is [text, warning] where it may call for attention. */
function show(list, figures) {
  const rows = Object.entries(figures).filter(([, value]) => value !== undefined);
  list.replaceChildren(...(rows.length ? rows : [["Nothing yet", ""]]).map(([name, value]) => {
    const [text, warning] = Array.isArray(value) ? value : [value, false];
    const row = document.createElement("div");
    const [term, description] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    description.textContent = text;
    description.toggleAttribute("data-warning", Boolean(warning));
    row.append(term, description);
    return row;
  }));
}

// ---- Watch

const watch = new Tab("watch", async (tab, stream, token, signal) => {
  tab.say("busy", `Asking for “${stream}” …`);
  let began = performance.now();
  let firstFrame;
  const connect = (counter) => {
    began = performance.now();
    firstFrame = undefined;
    const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    if (!counter) {
      pc.addTransceiver("video", { direction: "recvonly" });
      pc.addTransceiver("audio", { direction: "recvonly" });
    }
    const media = new MediaStream();
    pc.addEventListener("track", (e) => {
      media.addTrack(e.track);
      tab.video.srcObject = media;
    });
    return pc;
  };
  await tab.keep("whep", stream, token, connect, (session, works) => {
    tab.say("busy", `Connecting to “${stream}” …`);
    const loaded = () => {
      firstFrame ??= performance.now() - began;
      works();
      tab.say("live", "Live");
      $("sound").hidden = !tab.video.muted;
    };
    tab.video.addEventListener("loadeddata", loaded, { signal, once: true });
    session.pc.addEventListener("connectionstatechange", () => {
      if (session.pc.connectionState === "disconnected") tab.say("trouble", "The connection is interrupted. Waiting for it …");
      if (session.pc.connectionState === "connected") {
        if (firstFrame === undefined) tab.say("busy", "Connected. Waiting for the picture …");
        else tab.say("live", "Live");
      }
    });
    return watchStats(session, (now, before) => {
      const video = now["inbound-rtp video"] ?? {};
      const audio = now["inbound-rtp audio"] ?? {};
      const buffer = video.jitterBufferEmittedCount ? video.jitterBufferDelay / video.jitterBufferEmittedCount : undefined;
      const lost = packetsLost(now);
      const worse = before && video.freezeCount > (before["inbound-rtp video"]?.freezeCount ?? 0);
      window.sidestream.stats = {
        stream, region: config.region, state: session.pc.connectionState, firstFrameMs: firstFrame,
        roundTripMs: now.pair?.currentRoundTripTime * 1000, framesDecoded: video.framesDecoded, framesPerSecond: video.framesPerSecond,
        width: video.frameWidth, height: video.frameHeight, bytesReceived: (video.bytesReceived ?? 0) + (audio.bytesReceived ?? 0),
        packetsLost: lost, nacks: video.nackCount, keyFrameRequests: video.pliCount, freezes: video.freezeCount,
        freezeSeconds: video.totalFreezesDuration, jitterMs: video.jitter * 1000, codec: now["video codec"],
        audioBytes: audio.bytesReceived, audioEnergy: audio.totalAudioEnergy,
      };
      show(tab.figures, {
        "Round trip": milliseconds(now.pair?.currentRoundTripTime),
        "First frame after": firstFrame === undefined ? undefined : `${number(firstFrame)} ms`,
        "Bitrate": bitrate(now, before, "bytesReceived"),
        "Picture": video.frameWidth ? `${video.frameWidth} × ${video.frameHeight}` : undefined,
        "Frame rate": video.framesPerSecond === undefined ? undefined : `${number(video.framesPerSecond)} per second`,
        "Frames decoded": video.framesDecoded === undefined ? undefined : number(video.framesDecoded),
        "Freezes": video.freezeCount === undefined ? undefined
          : [`${number(video.freezeCount)} · ${number(video.totalFreezesDuration ?? 0, 1)} s`, worse],
        "Jitter": milliseconds(video.jitter),
        "Jitter buffer": milliseconds(buffer),
        "Packets lost": [number(lost), before && lost > packetsLost(before)],
        "Packets asked for again": video.nackCount === undefined ? undefined : number(video.nackCount),
        "Key frames asked for": video.pliCount === undefined ? undefined : number(video.pliCount),
        "Codecs": [now["video codec"], now["audio codec"]].filter(Boolean).join(", ") || undefined,
      });
    });
  }, signal);
});

$("sound").addEventListener("click", () => {
  watch.video.muted = false;
  $("sound").hidden = true;
  watch.video.play().catch(() => {});
});

// ---- Publish

/** A picture that moves and a tone that beeps, for those without a camera. */
function pattern(signal) {
  const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 360 });
  const context = canvas.getContext("2d");
  let frame = 0;
  const draw = () => {
    const angle = (frame / 60) * 2 * Math.PI;
    context.fillStyle = `hsl(${frame % 360} 45% 18%)`;
    context.fillRect(0, 0, 640, 360);
    context.fillStyle = "#ffc857";
    context.beginPath();
    context.arc(480 + 90 * Math.cos(angle), 180 + 90 * Math.sin(angle), 26, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = "#fff";
    context.font = "600 44px monospace";
    context.fillText(new Date().toISOString().slice(11, 23), 32, 120);
    context.font = "24px monospace";
    context.fillText(`frame ${frame}`, 32, 170);
    context.fillText(`published at ${config.region}`, 32, 320);
    frame++;
  };
  const drawing = setInterval(draw, 1000 / 30);
  draw();

  const sound = new AudioContext();
  const tone = new OscillatorNode(sound, { frequency: 660 });
  const volume = new GainNode(sound, { gain: 0 });
  const out = new MediaStreamAudioDestinationNode(sound, { channelCount: 1 });
  tone.connect(volume).connect(out);
  tone.start();
  const beeping = setInterval(() => {
    volume.gain.setTargetAtTime(0.2, sound.currentTime, 0.005);
    volume.gain.setTargetAtTime(0, sound.currentTime + 0.12, 0.005);
  }, 1000);
  signal.addEventListener("abort", () => {
    clearInterval(drawing);
    clearInterval(beeping);
    sound.close();
  });
  return new MediaStream([...canvas.captureStream(30).getTracks(), ...out.stream.getTracks()]);
}

async function camera() {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the camera to secure pages only: open this page by https or at localhost.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: true, video: { width: { ideal: 1280 }, height: { ideal: 720 } } });
  } catch (e) {
    if (e.name === "NotFoundError") throw new Error("There is no camera or no microphone. Connect one, or choose the test pattern.");
    if (e.name === "NotAllowedError") throw new Error("The browser does not let this page use the camera. Allow it in the address bar and try again.");
    throw new Error(`The camera cannot be used: ${e.message}`);
  }
}

const publish = new Tab("publish", async (tab, stream, token, signal) => {
  tab.say("busy", "Starting the source …");
  const media = tab.form.source.value === "camera" ? await camera() : pattern(signal);
  const end = () => media.getTracks().forEach((t) => t.stop());
  if (signal.aborted) end();
  signal.throwIfAborted();
  signal.addEventListener("abort", end);
  const connect = () => {
    const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    for (const track of media.getTracks()) pc.addTransceiver(track, { direction: "sendonly", streams: [media] });
    return pc;
  };
  tab.say("busy", `Publishing “${stream}” …`);
  tab.video.srcObject = media;
  await tab.keep("whip", stream, token, connect, (session, works) => {
    session.pc.addEventListener("connectionstatechange", () => {
      if (session.pc.connectionState === "disconnected") tab.say("trouble", "The connection is interrupted. Waiting for it …");
      if (session.pc.connectionState === "connected") {
        works();
        tab.say("live", `On air as “${stream}”`);
      }
    });
    return watchStats(session, (now, before) => {
      const video = now["outbound-rtp video"] ?? {};
      const far = now["remote-inbound-rtp video"] ?? {};
      window.sidestream.published = {
        stream, state: session.pc.connectionState, framesEncoded: video.framesEncoded, packetsSent: video.packetsSent,
      };
      show(tab.figures, {
        "Round trip": milliseconds(now.pair?.currentRoundTripTime),
        "Bitrate": bitrate(now, before, "bytesSent"),
        "Picture": video.frameWidth ? `${video.frameWidth} × ${video.frameHeight}` : undefined,
        "Frame rate": video.framesPerSecond === undefined ? undefined : `${number(video.framesPerSecond)} per second`,
        "Frames sent": video.framesEncoded === undefined ? undefined : number(video.framesEncoded),
        "Packets lost on the way": far.packetsLost === undefined ? undefined : [number(far.packetsLost), far.packetsLost > 0],
        "Packets sent again": video.retransmittedPacketsSent === undefined ? undefined : number(video.retransmittedPacketsSent),
        "Key frames asked for": video.pliCount === undefined ? undefined : number(video.pliCount),
        "Held back by": video.qualityLimitationReason && video.qualityLimitationReason !== "none"
          ? [{ cpu: "this computer", bandwidth: "the network" }[video.qualityLimitationReason] ?? "something else", true] : undefined,
        "Codecs": [now["video codec"], now["audio codec"]].filter(Boolean).join(", ") || undefined,
      });
    });
  }, signal);
});

// ---- The page

function route() {
  const page = location.hash === "#publish" ? "publish" : "watch";
  for (const name of ["watch", "publish"]) $(name).hidden = name !== page;
  for (const link of document.querySelectorAll(".pages a")) {
    if (link.hash === `#${page}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

const asked = new URLSearchParams(location.search).get("stream");
watch.form.stream.value = asked || config.stream;
publish.form.stream.value = asked || "studio";
// Other regions are looked at with the same stream.
for (const link of document.querySelectorAll("[data-region]")) {
  link.addEventListener("click", () => {
    const to = new URL(link.href);
    to.searchParams.set("stream", watch.form.stream.value);
    link.href = to;
  });
}
show(watch.figures, {});
show(publish.figures, {});
window.addEventListener("hashchange", route);
window.addEventListener("pagehide", () => { watch.stop(); publish.stop(); });
route();
if (location.hash !== "#publish") watch.start();
