// link.js: the connection to the server. It reconnects with backoff unless the close code forbids it, and never before the
// delay that the server asks for. It does not manage subscriptions.

import { KIND, LayoutError, SUBPROTOCOL, hello, ping, pong, readFrames } from "./wire.js";

/** Backoff between attempts, as in tickcast's other clients: a random delay below a limit that doubles each time. */
const BACKOFF_MS = 500;
const BACKOFF_MS_MAX = 20_000;
/** A session that stayed up for this long resets the backoff. */
const STABLE_MS = 10_000;
/** Longest delay that the server may ask for. */
const RETRY_AFTER_MS_MAX = 900_000;
/** Close code of a connection that was not admitted, and the shortest delay after it. */
const NOT_ADMITTED = 3504;
const NOT_ADMITTED_MS = 1_000;

const PING_MS = 2_000;
/** Extra pings after a welcome, ms: the first round trips include the page's own startup. */
const FIRST_PINGS_MS = [250, 500, 750];
/** A connection is dead if no welcome, or nothing after a ping, arrives for this long. */
const SILENCE_MS = 10_000;
/** A timer later than this means that the page was suspended: messages may still wait to be read. */
const SUSPENDED_MS = 5_000;
/** Round trips over which the minimum is taken. */
const ROUND_TRIPS = 32;

/** Whether clients should reconnect after this close code. */
function mayReconnect(code) {
  return [0, 1001, 1005, 1006, 1012, 1013, NOT_ADMITTED].includes(code) || (code >= 3000 && code < 3500);
}

/**
 * A connection that reconnects.
 *
 * `handlers` has four functions: `welcome({epoch, session, server})`; `frame(frame, bytes)` for every other frame;
 * `state(state, detail)`; `woke(ms)` after a suspension. The states are `connecting`, `live`, `waiting` (detail: `code`,
 * `reason`, and `at`, the time of the next attempt) and `refused` (`code`, `reason`: only the user can retry).
 */
export class Link {
  roundTripMs = NaN;
  #url;
  #handlers;
  #socket = null;
  #attempt = 0;
  #upSince = 0;
  /** When this connection attempt started. */
  #startedAt = 0;
  #retryTimer = 0;
  /** Time of the next attempt, and the earliest one the server allows. `Date.now()`: it advances while the machine sleeps. */
  #retryAt = 0;
  #retryAfter = 0;
  /** Why the last connection ended: `{code, reason}`. */
  #detail = {};
  #closing = null;
  #token = 0;
  #pinged = new Map();
  #roundTrips = [];
  #silentSince = 0;
  #checkedAt = performance.now();
  #checkedAtWall = Date.now();

  constructor(url, handlers) {
    this.#url = url;
    this.#handlers = handlers;
    setInterval(() => this.#checkConnection(), PING_MS);
    // Retry early when the network returns or the user looks at the page.
    addEventListener("online", () => this.#retrySoon());
    document.addEventListener("visibilitychange", () => document.hidden || this.#retrySoon());
  }

  /** Shortest recent round trip, ms; NaN before the first. */
  get shortestRoundTripMs() {
    return this.#roundTrips.length === 0 ? NaN : Math.min(...this.#roundTrips);
  }

  connect() {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = 0;
    this.#closing = null;
    this.#pinged.clear();
    this.#roundTrips = [];
    this.#silentSince = 0;
    this.#upSince = 0;
    this.#startedAt = performance.now();
    this.#notify("state", "connecting", {});
    const socket = new WebSocket(this.#url, [SUBPROTOCOL]);
    socket.binaryType = "arraybuffer";
    const ifCurrent = (handle) => (event) => socket === this.#socket && handle(event);
    socket.onopen = ifCurrent(() => socket.send(hello("page")));
    socket.onmessage = ifCurrent((event) => this.#message(event.data));
    socket.onclose = ifCurrent((event) => this.#lost(event.code, event.reason));
    this.#socket = socket;
  }

  /** Reconnects immediately, on the user's request. Abandons a connection that has no welcome yet. */
  retry() {
    if (this.#upSince !== 0) return;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    this.#attempt = 0;
    this.connect();
  }

  /** Sends a frame. Without a connection it does nothing: the caller subscribes again after the next welcome. */
  send(bytes) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(bytes);
  }

  /**
   * Shortens the wait for the next attempt, but not below what the server asked for. The delay stays random, because the
   * network returns for all clients at once.
   */
  #retrySoon() {
    if (this.#retryTimer === 0) return;
    const now = Date.now();
    const soon = Math.max(now, this.#retryAfter) + Math.random() * BACKOFF_MS;
    // Restart the timer even if the time stays the same: timers stop while the machine sleeps.
    const at = Math.min(soon, Math.max(now, this.#retryAt));
    this.#attempt = 0;
    this.#retryIn(at - now);
    this.#notify("state", "waiting", { ...this.#detail, at: performance.now() + at - now });
  }

  #retryIn(delay) {
    clearTimeout(this.#retryTimer);
    this.#retryAt = Date.now() + delay;
    this.#retryTimer = setTimeout(() => this.connect(), delay);
  }

  /** Calls a handler. An exception in it is a bug of the page and does not cost the connection. */
  #notify(handler, ...values) {
    try {
      this.#handlers[handler](...values);
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
      this.#abandon(1002, `malformed frame from the server: ${error.message}`);
    }
  }

  #frame(frame, bytes) {
    if (frame.kind === KIND.welcome) {
      this.#upSince = performance.now();
      const welcome = { epoch: frame.big(0), session: frame.big(8), server: frame.text() };
      this.#notify("state", "live", welcome);
      this.#notify("welcome", welcome);
      const socket = this.#socket;
      for (const after of FIRST_PINGS_MS) setTimeout(() => this.#socket === socket && this.#ping(), after);
    } else if (frame.kind === KIND.pong) {
      const token = frame.u32(0);
      const sent = this.#pinged.get(token);
      this.#pinged.delete(token);
      if (sent !== undefined) this.#addRoundTrip(performance.now() - sent);
    } else if (frame.kind === KIND.ping) {
      this.send(pong(frame.big(0)));
    } else if (frame.kind === KIND.closing) {
      this.#closing = { after: frame.u32(0), code: frame.u16(4), reason: frame.text() };
    } else {
      try {
        this.#handlers.frame(frame, bytes);
      } catch (error) {
        // Reading a field past the end of a record also throws this.
        if (error instanceof LayoutError) throw error;
        console.error(error);
      }
    }
  }

  #addRoundTrip(ms) {
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
   * Detects that the page was suspended; call it at least every PING_MS. It compares both clocks, because
   * `performance.now()` may stop while the machine sleeps and `Date.now()` does not.
   */
  detectSuspension() {
    const [now, wall] = [performance.now(), Date.now()];
    const late = Math.max(now - this.#checkedAt, wall - this.#checkedAtWall) - PING_MS;
    this.#checkedAt = now;
    this.#checkedAtWall = wall;
    if (late <= SUSPENDED_MS) return;
    // The page caused the silence itself, and round trips across the suspension are meaningless.
    this.#pinged.clear();
    this.#silentSince = 0;
    this.#startedAt = now;
    this.#notify("woke", late);
    this.#retrySoon();
  }

  /** Pings and looks for timeouts, every PING_MS. */
  #checkConnection() {
    this.detectSuspension();
    const now = performance.now();
    if (this.#upSince === 0) {
      const isLate = this.#socket !== null && now - this.#startedAt > SILENCE_MS;
      return isLate ? this.#abandon(1006, "no welcome within 10 s") : undefined;
    }
    if (this.#silentSince !== 0 && now - this.#silentSince > SILENCE_MS) {
      return this.#abandon(1006, "no response for 10 s");
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
    // After a suspension, the close event may run before any timer.
    this.detectSuspension();
    this.#socket = null;
    const now = performance.now();
    if (this.#upSince !== 0 && now - this.#upSince > STABLE_MS) this.#attempt = 0;
    const defaultReason = this.#upSince === 0 ? "no response from the server" : "connection lost";
    this.#upSince = 0;
    const { code, reason, after } = this.#closing ?? { code: closeCode, reason: closeReason, after: 0 };
    const detail = (this.#detail = { code, reason: reason || defaultReason });
    if (!mayReconnect(code)) return this.#notify("state", "refused", detail);
    const retryAfter = Math.min(code === NOT_ADMITTED ? Math.max(after, NOT_ADMITTED_MS) : after, RETRY_AFTER_MS_MAX);
    const backoffMax = Math.min(BACKOFF_MS * 2 ** Math.min(this.#attempt, 16), BACKOFF_MS_MAX);
    this.#attempt += 1;
    const delay = retryAfter + Math.random() * backoffMax;
    this.#retryAfter = Date.now() + retryAfter;
    this.#retryIn(delay);
    this.#notify("state", "waiting", { ...detail, at: now + delay });
  }
}
