// simulated.mjs: the committed bundle in a world of its own: time, random numbers, timers and WebSockets are the test's.
import { readFileSync } from "node:fs";
import vm from "node:vm";

const bundle = new URL("../bundle/tickcast.js", import.meta.url);

/** The bundle as a function of its globals, which returns its exports. */
function compile(globals) {
  const source = readFileSync(process.env.TICKCAST_BUNDLE ?? bundle, "utf8");
  const exports = /export\s*\{([^}]*)\};?\s*$/.exec(source);
  if (exports === null) throw new Error("the bundle has no exports at its end");
  const names = exports[1].split(",").map((name) => name.trim().split(" as "));
  const object = names.map(([local, exported = local]) => `${JSON.stringify(exported)}:${local}`);
  const body = `(function(${Object.keys(globals)}){"use strict";${source.slice(0, exports.index)}\nreturn {${object}};})`;
  return vm.runInThisContext(body, { filename: "tickcast.js" })(...Object.values(globals));
}

/** Lets promises settle. */
const settle = () => new Promise((done) => setImmediate(done));

/** One simulated world, with at most one socket that the client has not given up. */
export class World {
  now = 0;
  /** What the client did: see the actions in the transcripts' README. */
  actions = [];
  socket = null;
  #timers = new Map();
  #lastTimer = 0;
  #random;

  constructor({ wallMs, random }) {
    this.#random = [...random];
    const world = this;
    class WebSocket {
      readyState = 0;
      constructor(url, protocols) {
        world.actions.push({ dial: { url, protocols } });
        world.socket = this;
      }
      send(message) {
        world.actions.push(typeof message === "string" ? { send: JSON.parse(message) } : { sendFrames: hex(message) });
      }
      close(code) {
        this.readyState = 3;
        world.actions.push({ hang_up: code });
        world.socket = null;
      }
    }
    const setTimeout = (run, delay) => {
      this.#lastTimer += 1;
      this.#timers.set(this.#lastTimer, { at: this.now + delay, run });
      return this.#lastTimer;
    };
    const clearTimeout = (timer) => this.#timers.delete(timer);
    const random$ = () => {
      if (this.#random.length === 0) throw new Error("the client takes a random number that the script does not have");
      return this.#random.shift();
    };
    this.sdk = compile({
      WebSocket,
      setTimeout,
      clearTimeout,
      performance: { now: () => this.now, timeOrigin: wallMs },
      Math: Object.assign(Object.create(Math), { random: random$ }),
      globalThis: { WebSocket },
    });
  }

  get randomLeft() {
    return this.#random.length;
  }

  /** Timers that have not run: a Node process stays for them. */
  get timers() {
    return this.#timers.size;
  }

  /** Time passes, and timers run at their times. */
  async advance(ms) {
    const end = this.now + ms;
    for (;;) {
      await settle();
      const due = this.#due(end);
      if (due === undefined) break;
      this.now = Math.max(this.now, due.at);
      due.run();
    }
    this.now = end;
    await settle();
  }

  /** Time passes, but no timer runs before the end. */
  async sleep(ms) {
    this.now += ms;
    await this.advance(0);
  }

  async open(subprotocol) {
    this.socket.readyState = 1;
    this.socket.protocol = subprotocol;
    this.socket.onopen({});
    await settle();
  }

  async receive(data) {
    this.socket.onmessage({ data });
    await settle();
  }

  async close(code, reason) {
    const { socket } = this;
    this.socket = null;
    socket.readyState = 3;
    socket.onclose({ code, reason });
    await settle();
  }

  settle() {
    return settle();
  }

  #due(end) {
    let found;
    for (const [id, timer] of this.#timers) {
      if (timer.at <= end && (found === undefined || timer.at < found.at)) found = { id, ...timer };
    }
    if (found !== undefined) this.#timers.delete(found.id);
    return found;
  }
}

export function hex(bytes) {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}
