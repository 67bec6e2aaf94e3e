// The publisher: a camera, a screen or a test pattern goes out by WHIP.

import { $, config, element, number, write } from "./shell.js";
import { endpoint, explain, pause, Session, temporary } from "./whip.js";
import { show, watch } from "./stats.js";

const [form, stage, video] = [$("form"), $("status").closest(".stage"), $("preview")];
let controller;
let session;

function say(state, words) {
  stage.dataset.state = state;
  write($("status"), words);
}

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

const chosen = (id) => (id ? { deviceId: { exact: id } } : {});

/** The camera and the microphone, or the screen. */
async function capture(source) {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give camera and screen to secure pages only: open this page by https or at localhost.");
  }
  const [what, size] = source === "screen" ? ["screen", {}] : ["camera", { width: { ideal: 1280 }, height: { ideal: 720 } }];
  try {
    if (source === "screen") return await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 30 } }, audio: true });
    const media = await navigator.mediaDevices.getUserMedia({
      audio: chosen(form.microphone.value), video: { ...size, ...chosen(form.camera.value) },
    });
    await offerDevices(); // whose names are known only now
    return media;
  } catch (e) {
    if (e.name === "NotFoundError") throw new Error("There is no camera or no microphone. Connect one, or choose the test pattern.");
    if (e.name === "NotAllowedError") throw new Error(`The browser does not let this page use the ${what}. Allow it in the address bar and try again.`);
    throw new Error(`The ${what} cannot be used: ${e.message}`);
  }
}

async function offerDevices() {
  const all = await navigator.mediaDevices?.enumerateDevices().catch(() => []) ?? [];
  for (const [select, kind] of [[form.camera, "videoinput"], [form.microphone, "audioinput"]]) {
    const before = select.value;
    const found = all.filter((d) => d.kind === kind && d.deviceId);
    select.replaceChildren(element("option", { value: "" }, "Any"), ...found.map((d, i) => element("option", { value: d.deviceId }, d.label || `Device ${i + 1}`)));
    select.value = found.some((d) => d.deviceId === before) ? before : "";
  }
}

/** How a track is sent: three layers where they are wanted, each half as large as the one above. */
function encodings(track, kbps, simulcast) {
  if (track.kind === "audio") return [{}];
  if (!simulcast) return [{ maxBitrate: kbps * 1000 }];
  return [
    { rid: "l", maxBitrate: kbps * 100, scaleResolutionDownBy: 4 },
    { rid: "m", maxBitrate: kbps * 350, scaleResolutionDownBy: 2 },
    { rid: "h", maxBitrate: kbps * 1000 },
  ];
}

async function start() {
  stop();
  const mine = new AbortController();
  controller = mine;
  form.stop.disabled = false;
  try {
    await publish(form.stream.value.trim(), form.token.value, mine.signal);
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
  video.srcObject = null;
  form.stop.disabled = true;
  say("idle", "Stopped.");
}

function leave() {
  session?.close();
  session = undefined;
  show($("numbers"), {});
}

/** Publishes session after session until the signal says stop. */
async function publish(stream, token, signal) {
  say("busy", "Starting the source …");
  const [source, kbps, simulcast] = [form.source.value, Number(form.bitrate.value), form.simulcast.checked];
  const media = source === "pattern" ? pattern(signal) : await capture(source);
  const end = () => media.getTracks().forEach((t) => t.stop());
  if (signal.aborted) end();
  signal.throwIfAborted();
  signal.addEventListener("abort", end);
  // Who ends the sharing in the browser's own bar ends the publication.
  media.getVideoTracks()[0]?.addEventListener("ended", () => { if (!signal.aborted) stop(); });
  video.srcObject = media;
  const connect = () => {
    const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    for (const track of media.getTracks()) {
      pc.addTransceiver(track, { direction: "sendonly", streams: [media], sendEncodings: encodings(track, kbps, simulcast) });
    }
    return pc;
  };
  for (let failures = 0; ; failures++) {
    let words = "The connection was lost.";
    let wait = Math.min(2 ** failures, 15);
    say("busy", `Publishing “${stream}” …`);
    try {
      session = await Session.open(endpoint("whip", stream), token, connect, signal);
      const mine = session;
      mine.pc.addEventListener("connectionstatechange", () => {
        if (mine.pc.connectionState === "disconnected") say("trouble", "The connection is interrupted. Waiting for it …");
        if (mine.pc.connectionState === "connected") {
          failures = 0;
          say("live", `On air as “${stream}”`);
        }
      });
      watch(mine, (now, before) => tell(stream, mine, now, before)).catch(() => {});
      await mine.failed(signal);
      wait = 1;
    } catch (e) {
      if (signal.aborted) throw e;
      words = explain(e, stream, true);
      if (!temporary(e)) throw new Error(words);
      wait = Math.max(e.retryAfter ?? wait, 1);
    }
    leave();
    say("trouble", `${words} Trying again in ${wait} second${wait === 1 ? "" : "s"}.`);
    await pause(wait, signal);
  }
}

function tell(stream, mine, now, before) {
  if (mine.closed) return;
  const [picture, sound, far] = [now["out video"] ?? {}, now["out audio"] ?? {}, now["far video"] ?? {}];
  const old = before ?? {};
  const kbps = (key) => (before && now[key] ? `${number(8 * (now[key].bytesSent - (old[key]?.bytesSent ?? 0)) / (now.time - old.time))} kbit/s` : undefined);
  window.sidestream.published = {
    stream, state: mine.pc.connectionState, framesEncoded: picture.framesEncoded, layers: picture.layers ?? 1,
    packetsSent: (picture.packetsSent ?? 0) + (sound.packetsSent ?? 0), bytesSent: (picture.bytesSent ?? 0) + (sound.bytesSent ?? 0),
  };
  const count = (n) => (n === undefined ? undefined : number(n));
  show($("numbers"), {
    "Round trip": now.pair?.currentRoundTripTime === undefined ? undefined : `${number(now.pair.currentRoundTripTime * 1000)} ms`,
    "Video": kbps("out video"),
    "Audio": kbps("out audio"),
    "Picture": picture.frameWidth ? `${picture.frameWidth} × ${picture.frameHeight}` : undefined,
    "Qualities": picture.layers > 1 ? number(picture.layers) : undefined,
    "Frame rate": picture.framesPerSecond === undefined ? undefined : `${number(picture.framesPerSecond)} per second`,
    "Frames sent": count(picture.framesEncoded),
    "Packets lost on the way": far.packetsLost === undefined ? undefined : [number(far.packetsLost), far.packetsLost > 0],
    "Packets sent again": count(picture.retransmittedPacketsSent),
    "Key frames asked for": count(picture.pliCount),
    "Held back by": picture.qualityLimitationReason && picture.qualityLimitationReason !== "none"
      ? [{ cpu: "this computer", bandwidth: "the network" }[picture.qualityLimitationReason] ?? "something else", true] : undefined,
    "Codecs": [now.videoCodec, now.audioCodec].filter(Boolean).join(", ") || undefined,
  });
}

function offer() {
  for (const label of form.querySelectorAll("[data-for]")) label.hidden = label.dataset.for !== form.source.value;
}

form.addEventListener("submit", (e) => { e.preventDefault(); start(); });
form.stop.addEventListener("click", stop);
form.source.addEventListener("change", offer);
window.addEventListener("pagehide", stop);
form.stream.value = new URLSearchParams(location.search).get("stream") || "studio";
show($("numbers"), {});
offer();
offerDevices();
