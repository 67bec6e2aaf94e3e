// What a browser measures of a session, second by second.

import { number } from "./shell.js";

/** The figures of a play, in the order in which they are shown and written to files. plot: it is drawn. */
export const figures = [
  { key: "rttMs", label: "Round trip", unit: "ms", plot: true },
  { key: "videoKbps", label: "Video", unit: "kbit/s", plot: true, with: "audioKbps" },
  { key: "audioKbps", label: "Audio", unit: "kbit/s" },
  { key: "lossPercent", label: "Packets lost", unit: "%", digits: 2, plot: true },
  { key: "nacks", label: "Asked for again (NACK)", unit: "per second", plot: true, with: "plis" },
  { key: "plis", label: "Key frames asked for (PLI)", unit: "per second" },
  { key: "bufferMs", label: "Jitter buffer", unit: "ms", plot: true },
  { key: "fps", label: "Frames decoded", unit: "per second", plot: true },
  { key: "freezeMs", label: "Frozen", unit: "ms in a second", plot: true },
  { key: "freezes", label: "Freezes so far", unit: "" },
  { key: "freezeSeconds", label: "Frozen so far", unit: "s", digits: 1 },
  { key: "height", label: "Height of the picture", unit: "pixels", plot: true },
  { key: "dropped", label: "Frames dropped so far", unit: "frames", plot: true, with: "keyFrames" },
  { key: "keyFrames", label: "Key frames so far", unit: "frames" },
  { key: "packets", label: "Packets", unit: "per second", plot: true },
  { key: "latencyMs", label: "Since the capture", unit: "ms", plot: true },
  { key: "jitterMs", label: "Jitter", unit: "ms", digits: 1 },
];

export const figure = (key) => figures.find((f) => f.key === key);

/** A value for people; undefined where there is none. */
export function shown(f, value) {
  if (value === undefined || value === null || Number.isNaN(value)) return undefined;
  return `${number(value, f.digits ?? 0)}${f.unit ? ` ${f.unit}` : ""}`;
}

/** A report by what is in it: the selected pair, and each way's audio and video. */
export function digest(report) {
  const found = { time: performance.now() };
  const codec = (entry) => report.get(entry?.codecId)?.mimeType?.split("/")[1];
  for (const s of report.values()) {
    if (s.type === "transport") found.pair = report.get(s.selectedCandidatePairId);
    if (s.type === "inbound-rtp") found[`in ${s.kind}`] = s;
    // Layers of simulcast are added up.
    if (s.type === "outbound-rtp") {
      const old = found[`out ${s.kind}`];
      found[`out ${s.kind}`] = !old ? { ...s } : {
        ...old, bytesSent: old.bytesSent + s.bytesSent, packetsSent: old.packetsSent + s.packetsSent,
        retransmittedPacketsSent: old.retransmittedPacketsSent + s.retransmittedPacketsSent, pliCount: old.pliCount + s.pliCount,
        framesEncoded: Math.max(old.framesEncoded ?? 0, s.framesEncoded ?? 0), frameWidth: Math.max(old.frameWidth ?? 0, s.frameWidth ?? 0),
        frameHeight: Math.max(old.frameHeight ?? 0, s.frameHeight ?? 0), layers: (old.layers ?? 1) + 1,
      };
    }
    if (s.type === "remote-inbound-rtp") found[`far ${s.kind}`] = s;
  }
  found.videoCodec = codec(found["in video"] || found["out video"]);
  found.audioCodec = codec(found["in audio"] || found["out audio"]);
  return found;
}

/** One second of a play, from two digests: the figures by their keys. */
export function second(now, before) {
  const [video, audio] = [now["in video"] ?? {}, now["in audio"] ?? {}];
  const [oldVideo, oldAudio] = [before?.["in video"] ?? {}, before?.["in audio"] ?? {}];
  const seconds = before ? (now.time - before.time) / 1000 : undefined;
  const rise = (key) => (video[key] === undefined ? undefined : video[key] - (oldVideo[key] ?? 0));
  const each = (n) => (seconds && n !== undefined ? n / seconds : undefined);
  const packets = (video.packetsReceived ?? 0) + (audio.packetsReceived ?? 0) - (oldVideo.packetsReceived ?? 0) - (oldAudio.packetsReceived ?? 0);
  // Those that came again count as lost: it is the network's loss, not the picture's.
  const missing = (rise("packetsLost") ?? 0) + (audio.packetsLost ?? 0) - (oldAudio.packetsLost ?? 0);
  const emitted = rise("jitterBufferEmittedCount");
  return {
    rttMs: now.pair?.currentRoundTripTime === undefined ? undefined : now.pair.currentRoundTripTime * 1000,
    videoKbps: each(rise("bytesReceived")) === undefined ? undefined : each(rise("bytesReceived")) * 8 / 1000,
    audioKbps: seconds && audio.bytesReceived !== undefined ? (audio.bytesReceived - (oldAudio.bytesReceived ?? 0)) * 8 / 1000 / seconds : undefined,
    packets: seconds ? packets / seconds : undefined,
    lossPercent: seconds && packets + missing > 0 ? Math.max(0, 100 * missing / (packets + missing)) : undefined,
    nacks: each(rise("nackCount")), plis: each(rise("pliCount")),
    bufferMs: seconds && emitted ? 1000 * rise("jitterBufferDelay") / emitted : undefined,
    fps: each(rise("framesDecoded")),
    freezeMs: seconds ? Math.min(1000 * (rise("totalFreezesDuration") ?? 0) / seconds, 1000 * seconds) : undefined,
    freezes: video.freezeCount, freezeSeconds: video.totalFreezesDuration, height: video.frameHeight, dropped: video.framesDropped, keyFrames: video.keyFramesDecoded,
    latencyMs: latency(video), jitterMs: video.jitter === undefined ? undefined : video.jitter * 1000,
  };
}

/** The time from the capture to the display, where the sender's clock is known and agrees with ours. */
function latency(video) {
  let captured = video.estimatedPlayoutTimestamp; // by the sender's clock
  if (!captured) return undefined;
  if (captured > 2.5e12) captured -= 2_208_988_800_000; // some count from 1900, as NTP does
  const ms = Date.now() - captured;
  return ms > 0 && ms < 60_000 ? ms : undefined;
}

/** Calls look once a second with what a connection says, for as long as its session is open. */
export async function watch(session, look) {
  let before;
  while (!session.closed) {
    const now = digest(await session.pc.getStats());
    look(now, before);
    before = now;
    await new Promise((resolve) => { setTimeout(resolve, 1000); });
  }
}

/** Shows figures as a list; one is [text, warning] where it may call for attention. */
export function show(list, rows) {
  const known = Object.entries(rows).filter(([, value]) => value !== undefined);
  list.replaceChildren(...(known.length ? known : [["Nothing yet", ""]]).map(([name, value]) => {
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
