// link.js: the connection to the server. It comes back by itself, as the server and its close codes ask, and never more
// often than is polite; what to subscribe to is not its business.

import { KIND, LayoutError, SUBPROTOCOL, hello, ping, pong, readFrames } from "./wire.js";

/** Pauses between attempts: random within a bound that doubles, as tickcast's other clients wait. */
const PAUSE_MS = 500;
const PAUSE_MS_MAX = 20_000;
/** A session that was up for so long begins with short pauses again. */
const STABLE_MS = 10_000;
/** The longest pause a server may ask for. */
const WISH_MS_MAX = 900_000;
/** 3504: not let in now; it asks for a pause of a second or more. */
const NOT_LET_IN = 3504;
const NOT_LET_IN_MS = 1_000;

const PING_MS = 2_000;
/** Pings after a welcome, ms: the first finds a page that is busy with its start. */
const FIRST_PINGS_MS = [250, 500, 750];
/** Nothing was heard for so long after a ping, or no welcome came: the connection is dead, whatever the browser thinks. */
const SILENCE_MS = 10_000;
/** The timer was late by more: this page was asleep, and what waits for it is still to be read. */
const ASLEEP_MS = 5_000;
/** Round trips that the shortest is taken of. */
const ROUND_TRIPS = 32;

/** Whether a server that closed with this code wants its clients back. */
function isWelcomeBack(code) {
  return [0, 1001, 1005, 1006, 1012, 1013, NOT_LET_IN].includes(code) || (code >= 3000 && code < 3500);
}

/**
 * `handlers`: `welcome({epoch, session, server})`, `frame(frame, bytes)` for every other frame, `state(state, detail)` and
 * `woke(ms)`. States: `connecting`, `live`, `waiting` (detail: code, reason, at: when the next attempt is), `refused`
 * (code, reason: only a person can try again).
 */
export class Link {
  roundTripMs = NaN;
  #url;
  #handlers;
  #socket = null;
  #attempt = 0;
  #upSince = 0;
  /** When this connection was begun. */
  #begun = 0;
  #retry = 0;
  /** When the next attempt is, and when the server's wish for a pause ends: `Date.now()`, which goes on in a sleep. */
  #retryAt = 0;
  #wishUntil = 0;
  /** Why this page waits: `{code, reason}`. */
  #detail = {};
  #closing = null;
  #token = 0;
  #pinged = new Map();
  #roundTrips = [];
  #silentSince = 0;
  #noticed = performance.now();
  #noticedWall = Date.now();

  constructor(url, handlers) {
    this.#url = url;
    this.#handlers = handlers;
    setInterval(() => this.#look(), PING_MS);
    // The network is back, or a person looks: no need to wait out a long pause.
    addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.#hurry());
  }

  /** The shortest of the last round trips, ms; NaN before the first. */
  get shortestRoundTripMs() {
    return this.#roundTrips.length === 0 ? NaN : Math.min(...this.#roundTrips);
  }

  connect() {
    clearTimeout(this.#retry);
    this.#retry = 0;
    this.#closing = null;
    this.#pinged.clear();
    this.#roundTrips = [];
    this.#silentSince = 0;
    this.#upSince = 0;
    this.#begun = performance.now();
    this.#tell("state", "connecting", {});
    const socket = new WebSocket(this.#url, [SUBPROTOCOL]);
    socket.binaryType = "arraybuffer";
    const ours = (handle) => (event) => socket === this.#socket && handle(event);
    socket.onopen = ours(() => socket.send(hello("page")));
    socket.onmessage = ours((event) => this.#message(event.data));
    socket.onclose = ours((event) => this.#lost(event.code, event.reason));
    this.#socket = socket;
  }

  /** Tries at once: a person wants it. A connection that was not welcomed yet is given up for it. */
  retry() {
    if (this.#upSince !== 0) return;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    this.#attempt = 0;
    this.connect();
  }

  /** Sends; what is sent without a connection is lost, and is asked for again after the next welcome. */
  send(bytes) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(bytes);
  }

  /**
   * Tries soon, but not before the server wants to see anybody, and at a random time: the network is back for others
   * too.
   */
  #hurry() {
    if (this.#retry === 0) return;
    const now = Date.now();
    const soon = Math.max(now, this.#wishUntil) + Math.random() * PAUSE_MS;
    // The timer of before stood still in a sleep.
    const at = Math.min(soon, Math.max(now, this.#retryAt));
    this.#attempt = 0;
    this.#wait(at - now);
    this.#tell("state", "waiting", { ...this.#detail, at: performance.now() + at - now });
  }

  #wait(pause) {
    clearTimeout(this.#retry);
    this.#retryAt = Date.now() + pause;
    this.#retry = setTimeout(() => this.connect(), pause);
  }

  /** What a handler throws is the page's own mistake, and no reason to give up the connection. */
  #tell(handler, ...told) {
    try {
      this.#handlers[handler](...told);
    } catch (error) {
      console.error(handler, error);
    }
  }

  #message(data) {
    this.#silentSince = 0;
    try {
      let bytes = data.byteLength;
      readFrames(data, (frame) => {
        this.#frame(frame, bytes);
        bytes = 0;
      });
    } catch (error) {
      if (!(error instanceof LayoutError)) throw error;
      console.error(error);
      this.#abandon(1002, `the server's bytes could not be read: ${error.message}`);
    }
  }

  #frame(frame, bytes) {
    if (frame.kind === KIND.welcome) {
      this.#upSince = performance.now();
      const welcome = { epoch: frame.big(0), session: frame.big(8), server: frame.text() };
      this.#tell("state", "live", welcome);
      this.#tell("welcome", welcome);
      const socket = this.#socket;
      for (const after of FIRST_PINGS_MS) setTimeout(() => this.#socket === socket && this.#ping(), after);
    } else if (frame.kind === KIND.pong) {
      const token = frame.u32(0);
      const sent = this.#pinged.get(token);
      this.#pinged.delete(token);
      if (sent !== undefined) this.#roundTrip(performance.now() - sent);
    } else if (frame.kind === KIND.ping) {
      this.send(pong(frame.big(0)));
    } else if (frame.kind === KIND.closing) {
      this.#closing = { after: frame.u32(0), code: frame.u16(4), reason: frame.text() };
    } else {
      try {
        this.#handlers.frame(frame, bytes);
      } catch (error) {
        // A record that is too short is found when it is read.
        if (error instanceof LayoutError) throw error;
        console.error(error);
      }
    }
  }

  #roundTrip(ms) {
    this.roundTripMs = ms;
    this.#roundTrips.push(ms);
    if (this.#roundTrips.length > ROUND_TRIPS) this.#roundTrips.shift();
  }

  #ping() {
    this.#token = (this.#token + 1) >>> 0;
    this.#pinged.set(this.#token, performance.now());
    this.send(ping(this.#token));
  }

  /**
   * Finds out whether this page was asleep, if it is called every PING_MS or more often. `performance.now()` stands still
   * in a machine that is asleep, `Date.now()` does not.
   */
  notice() {
    const [now, wall] = [performance.now(), Date.now()];
    const late = Math.max(now - this.#noticed, wall - this.#noticedWall) - PING_MS;
    this.#noticed = now;
    this.#noticedWall = wall;
    if (late <= ASLEEP_MS) return;
    // Round trips that were measured asleep say nothing, and silence was our own.
    this.#pinged.clear();
    this.#silentSince = 0;
    this.#begun = now;
    this.#tell("woke", late);
    this.#hurry();
  }

  /** Every PING_MS, unless the browser let this page sleep. */
  #look() {
    this.notice();
    const now = performance.now();
    if (this.#upSince === 0) {
      const isLate = this.#socket !== null && now - this.#begun > SILENCE_MS;
      return isLate ? this.#abandon(1006, "no welcome in ten seconds") : undefined;
    }
    if (this.#silentSince !== 0 && now - this.#silentSince > SILENCE_MS) {
      return this.#abandon(1006, "no answer for ten seconds");
    }
    if (this.#silentSince === 0) this.#silentSince = now;
    if (this.#pinged.size < ROUND_TRIPS) this.#ping();
  }

  #abandon(code, reason) {
    const socket = this.#socket;
    this.#lost(code, reason);
    socket?.close();
  }

  #lost(closeCode, closeReason) {
    // The first thing that a page hears when it wakes may be this.
    this.notice();
    this.#socket = null;
    const now = performance.now();
    if (this.#upSince !== 0 && now - this.#upSince > STABLE_MS) this.#attempt = 0;
    const unsaid = this.#upSince === 0 ? "no server answers" : "the connection was lost";
    this.#upSince = 0;
    const { code, reason, after } = this.#closing ?? { code: closeCode, reason: closeReason, after: 0 };
    const detail = (this.#detail = { code, reason: reason || unsaid });
    if (!isWelcomeBack(code)) return this.#tell("state", "refused", detail);
    const wish = Math.min(code === NOT_LET_IN ? Math.max(after, NOT_LET_IN_MS) : after, WISH_MS_MAX);
    const bound = Math.min(PAUSE_MS * 2 ** Math.min(this.#attempt, 16), PAUSE_MS_MAX);
    this.#attempt += 1;
    const pause = wish + Math.random() * bound;
    this.#wishUntil = Date.now() + wish;
    this.#wait(pause);
    this.#tell("state", "waiting", { ...detail, at: now + pause });
  }
}
