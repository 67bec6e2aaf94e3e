// WHIP and WHEP in a browser: sessions at any server that speaks them, with the extensions of WHEP.

import { config, readEvents } from "./shell.js";

/** The extensions that we know of, by the rel of their links. */
export const rels = {
  events: "urn:ietf:params:whep:ext:core:server-sent-events",
  layer: "urn:ietf:params:whep:ext:core:layer",
  loss: "https://sidestream.dev/rel/loss",
};

// ---- WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep)

/** What a server says when it does not open a session. */
export class Refusal extends Error {
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
export class Session {
  constructor(pc, token) {
    this.pc = pc;
    this.token = token;
    this.candidates = [];
    this.links = []; // that the server's answer had
    this.closed = false;
    this.ending = new AbortController();
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
      // A gateway may hold the request until the stream has come; who is silent for longer has gone.
      const patience = AbortSignal.any([signal, AbortSignal.timeout(20_000)]);
      const response = await session.request(endpoint, "POST", "application/sdp", offer.sdp, patience);
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
      session.links = parseLinks(response.headers.get("Link"), response.url);
      const iceServers = iceServersOf(session.links);
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

  /** The address of an extension that the server offers, or undefined. */
  extension(rel) {
    return this.links.find((l) => l.rel === rel)?.url();
  }

  /** Has some packets to this viewer thrown away, where the server can do that. */
  async lose(percent) {
    const at = this.extension(rels.loss);
    if (!at) throw new Error("This server cannot simulate loss.");
    const response = await this.request(at, "PATCH", "application/json", JSON.stringify({ loss: percent }));
    if (!response.ok) throw await Refusal.from(response);
  }

  /** Chooses a layer of simulcast for a track; null leaves the choice to the server. */
  async choose(mediaId, encodingId) {
    const response = await this.request(this.extension(rels.layer), "POST", "application/json",
      JSON.stringify(encodingId === null ? {} : { mediaId, encodingId }));
    if (!response.ok) throw await Refusal.from(response);
  }

  /** Hears the server's events until the session ends: hear(name, data). */
  async events(wanted, hear) {
    const at = this.extension(rels.events);
    if (!at) return;
    const link = this.links.find((l) => l.rel === rels.events);
    const offered = (link.events || "").split(",").map((e) => e.trim());
    const names = wanted.filter((e) => offered.includes(e));
    if (!names.length) return;
    const response = await this.request(at, "POST", "application/json", JSON.stringify(names));
    if (!response.ok) return;
    const stream = new URL(response.headers.get("Location"), response.url);
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    await readEvents(stream, headers, this.ending.signal, hear);
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
    this.ending.abort();
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

/** The links of a Link header (RFC 8288): their targets, absolute, and their parameters. */
function parseLinks(header, base) {
  const links = [];
  for (const [, target, rest] of (header || "").matchAll(/<([^>]*)>((?:\s*;\s*[\w-]+\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^",;]*))*)/g)) {
    const params = {};
    for (const [, name, quoted, plain] of rest.matchAll(/;\s*([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^",;]*))/g)) {
      params[name.toLowerCase()] = quoted === undefined ? plain.trim() : quoted.replace(/\\(.)/g, "$1");
    }
    links.push({ ...params, target, url: () => new URL(target, base) });
  }
  return links;
}

/** The ICE servers among links: <turn:host>; rel="ice-server"; username="u"; credential="c". */
function iceServersOf(links) {
  return links.filter((l) => l.rel === "ice-server").map((l) => (l.username
    ? { urls: l.target, username: l.username, credential: l.credential } : { urls: l.target }));
}

/** Where to POST an offer for a stream, at this gateway or at that whose pages are at a URL. */
export function endpoint(kind, stream, pages = location.href.split(/[?#]/)[0]) {
  const path = stream.split("/").map(encodeURIComponent).join("/");
  return new URL(`${config.base}${kind}/${path}`, pages);
}

// ---- What went wrong, in words that say what to do

export function explain(error, stream, publishing) {
  const name = `“${stream}”`;
  if (!(error instanceof Refusal)) {
    if (error.name === "TimeoutError") return "The server does not answer.";
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

/** Whether the server was not there at all. */
export const unreachable = (error) => error instanceof TypeError || error.name === "TimeoutError";

/** Whether it may work later without anybody doing something. */
export function temporary(error) {
  return !(error instanceof Refusal) ? unreachable(error) : [404, 408, 409, 429].includes(error.status) || error.status >= 500;
}

export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
  });
}

