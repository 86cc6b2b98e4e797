// The client: the core, a WebSocket and a timer.

import { Core } from "./core/core.js";
import type { ClientEvent, ClientState, Published, SubscribeOptions } from "./core/events.js";
import { exactKey, JSON_CODEC } from "./core/json.js";
import { NATIVE_CODEC } from "./core/native.js";
import {
  CLOSE_REASON_CHARS_MAX,
  CODE_LOST,
  NAME_LENGTH_MAX,
  OUTPUT_BYTES_MAX,
  type Positions,
  PUBLISH_TIMEOUT_MS,
  QUEUE_MAX,
  TIMER_MAX_MS,
} from "./core/protocol.js";
import { Emitter, report } from "./emitter.js";
import { Stream } from "./stream.js";
import { endError, Subscription } from "./subscription.js";

/** What the client uses of a browser's `WebSocket`; that of the package `ws` has it too. */
export interface WebSocketLike {
  binaryType: string;
  readonly bufferedAmount: number;
  readonly protocol: string;
  readonly readyState: number;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onopen: ((event: any) => void) | null;
  close(code?: number, reason?: string): void;
  /** Takes strings and `Uint8Array`s. */
  send(data: any): void;
}

/** A class like the browser's `WebSocket`. */
export type WebSocketClass = new (url: string, protocols: string[]) => WebSocketLike;

/** Options of a client. */
export interface ClientOptions {
  /** `json`, the default, is easy to read on the wire. `native` carries bytes without base64, and has `schema` and `ingestNs`. */
  codec?: "json" | "native";
  /** Name of the application, for the operator of the server. */
  name?: string;
  /** A token that does not change by itself: see {@link Client.setToken}. */
  token?: string;
  /** Returns a token; called before the first connection, and in time before each one expires. Takes precedence over `token`. */
  getToken?: (why: "connect" | "refresh") => string | Promise<string>;
  /** Positions that an earlier client saved: subscriptions that match their topics resume there. */
  positions?: Positions;
  /**
   * Saves positions, at most once a second, and when the connection is lost: those of the events that every iterator has finished. An iterator has
   * finished one when it asks for the next. Not called again before the promise that it returned settles.
   */
  savePositions?: (positions: Positions) => void | Promise<void>;
  /** Publishes that wait for a connection, or for the answers to 1,024 others (64), with at most 256 KiB of payloads. */
  offlineQueueMax?: number;
  /** The WebSocket class; needed where there is no global one, as in Node 20. */
  webSocket?: WebSocketClass;
}

/** Options of a publish. */
export interface PublishOptions {
  /** The part of the topic that it updates. A bigint or a string of digits above 2^53 - 1. */
  key?: number | bigint | string;
  /** A number for the type of the payload; not interpreted. */
  schema?: number;
  /** Nanoseconds since 1970; without it, the server's time. */
  timeNs?: number;
  /**
   * By which the server recognises the publish if it is sent again, so that it is published once: at most 255 bytes, different for each publish
   * to a topic, such as `crypto.randomUUID()`. A publish whose answer was lost is then sent again on the next connection. Fails with code 100 if the
   * server does not recognise ids.
   */
  messageId?: string;
  /** Time until the result is `unknown` or `not_sent` (10 s). */
  timeoutMs?: number;
}

/** A copy of the application's bytes, also of those of another window; undefined: it is something else. */
function bytesOf(data: unknown): Uint8Array | undefined {
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  const isBuffer = /ArrayBuffer]$/.test(Object.prototype.toString.call(data));
  return isBuffer ? new Uint8Array(data as ArrayBuffer).slice() : undefined;
}

/** A relative address, or one of HTTP, as the address of a WebSocket. */
function webSocketUrl(url: string): string {
  const base = typeof location === "undefined" ? undefined : location.href;
  return new URL(url, base).href.replace(/^http/, "ws");
}

/**
 * A client that stays connected, and resumes its subscriptions where they were. It connects with the first subscription or publish.
 *
 * ```js
 * const client = new Client("wss://host/ws");
 * const prices = client.subscribe("prices.>");
 * for await (const tick of prices) render(tick.topic, tick.data);
 * ```
 */
export class Client extends Emitter<ClientEvent> {
  readonly #options: ClientOptions;
  readonly #webSocket: WebSocketClass;
  readonly #core: Core;
  #socket: WebSocketLike | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #timerAt = Infinity;
  #isRunning = false;
  /** Whether the application has called `connect` or `disconnect`, or has subscribed or published. */
  #isStarted = false;
  readonly #streams = new Set<Stream<ClientEvent>>();
  /** Why it was last disconnected. */
  #end: Error | null | undefined;
  /** Whether iterators had not finished events when positions were last taken. */
  #isHeld = false;
  /** Saves of positions that were asked for: the first has not ended, and any others become one more. */
  #saves = 0;
  /** Calls of `getToken` so far. */
  #asks = 0;

  /** `url` may be relative to the page's, such as `/ws`. Throws if it is invalid, or there is no WebSocket class. */
  constructor(url: string, options: ClientOptions = {}) {
    super();
    this.#options = options;
    const webSocket = options.webSocket ?? (globalThis as { WebSocket?: WebSocketClass }).WebSocket;
    if (webSocket === undefined) throw new Error("pass the option webSocket");
    this.#webSocket = webSocket;
    this.#core = new Core({
      url: webSocketUrl(url),
      codec: options.codec === "native" ? NATIVE_CODEC : JSON_CODEC,
      name: options.name ?? "tickcast-js",
      token: options.token ?? "",
      asksToken: options.getToken !== undefined,
      positions: options.positions ?? {},
      savesPositions: options.savePositions !== undefined,
      offlineQueueMax: options.offlineQueueMax ?? 64,
      random: Math.random,
      wallOffsetMs: performance.timeOrigin,
    });
  }

  get state(): ClientState {
    return this.#core.state;
  }

  /** This clock minus the server's, in ms; null: unknown. With the codec `json` see {@link Latency.clockOffsetMs}. */
  get clockOffsetMs(): number | null {
    return this.#core.clockOffsetMs;
  }

  /** The position in each topic, to resume from with {@link ClientOptions.positions}: as of the events that every iterator has finished. */
  get positions(): Positions {
    const positions = this.#core.subscriptions.copy();
    const owners = this.#core.subscriptions.all.map(({ owner }) => owner as Subscription);
    const unread = owners.flatMap((owner) => owner.unread);
    this.#isHeld = unread.length > 0;
    for (const event of unread) {
      if (!("epoch" in event) || event.type === "recovered") continue;
      const { topic, epoch } = event;
      const sequence = (event.type === "tick" ? event.sequence : event.from) - 1;
      const at = positions[topic];
      // Epochs of later lives are higher.
      if (at && (epoch < at.epoch || (epoch === at.epoch && sequence < at.sequence))) positions[topic] = { epoch, sequence };
    }
    return positions;
  }

  /** @internal */
  get ended(): Error | null | undefined {
    return this.state === "disconnected" ? this.#end : undefined;
  }

  /** @internal */
  handleRead(): void {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    this.run((core) => core.handleRead());
  }

  /** Connects, also again after {@link disconnect} or a refusal. */
  connect(): void {
    this.#isStarted = true;
    this.run((core) => core.connect());
  }

  /** Closes the connection. Subscriptions stay, and resume with {@link connect}. */
  disconnect(): void {
    this.#isStarted = true;
    this.run((core) => core.disconnect());
  }

  /** Replaces the token, without a new connection. */
  setToken(token: string): void {
    this.run((core) => core.setToken(token));
  }

  /** Subscribes to a pattern: `*` is one token of a topic's name, `>` at the end the rest. Throws if it is subscribed already. */
  subscribe(pattern: string, options: SubscribeOptions = {}): Subscription {
    const subscription = this.run((core) => {
      const record = core.subscribe(pattern, options);
      return new Subscription(this, record);
    });
    if (!this.#isStarted) this.connect();
    return subscription;
  }

  /**
   * Publishes one tick: bytes (an `ArrayBuffer`, or a view of one) as they are, anything else as JSON. Resolves once the server has sequenced it.
   *
   * Rejects with a {@link PublishError}, whose `outcome` says whether the tick may have been published.
   */
  publish(topic: string, data: unknown, options: PublishOptions = {}): Promise<Published> {
    if (!this.#isStarted) this.connect();
    // What this throws rejects the promise.
    return new Promise((resolve, reject) => {
      const payload = bytesOf(data) ?? JSON.stringify(data);
      if (payload === undefined) throw new TypeError("the payload is not JSON");
      const { schema = 0, timeNs = 0, messageId = "", timeoutMs = PUBLISH_TIMEOUT_MS } = options;
      const check = (isValid: boolean, name: string) => {
        if (!isValid) throw new RangeError(`${name} is out of range`);
      };
      check(timeoutMs >= 0, "timeoutMs");
      const key = BigInt(options.key ?? 0);
      // Native frames would cut them off.
      check(BigInt.asUintN(64, key) === key, "key");
      check(schema >>> 0 === schema, "schema");
      check(Number.isInteger(timeNs) && timeNs >= 0 && timeNs < 2 ** 64, "timeNs");
      check(Math.max(topic.length, messageId.length) <= NAME_LENGTH_MAX, "length of topic or messageId");
      const settle = (result: Published | Error) => (result instanceof Error ? reject(result) : resolve(result));
      this.run((core) => {
        const deadline = performance.now() + timeoutMs;
        core.publish({ topic, payload, key: exactKey(key), schema, timeNs, messageId, deadline, settle });
      });
    });
  }

  /** All events of the client from now on. When the queue is full, the oldest are dropped, and `lagged` says how many. Ends when the client is disconnected. */
  events(options: { queueMax?: number } = {}): AsyncIterableIterator<ClientEvent> {
    const onClose = (closed: Stream<ClientEvent>) => this.#streams.delete(closed);
    const onDrop = (dropped: number): ClientEvent => ({ type: "lagged", dropped });
    const stream = new Stream(options.queueMax ?? QUEUE_MAX, onDrop, onClose);
    this.#streams.add(stream);
    return stream;
  }

  /** @internal */
  run<Result>(call: (core: Core) => Result): Result {
    const result = call(this.#core.at(performance.now()));
    // A listener may have called: the loop below goes on with what that caused.
    if (this.#isRunning) return result;
    this.#isRunning = true;
    try {
      this.#drain();
    } finally {
      this.#isRunning = false;
    }
    this.#schedule();
    return result;
  }

  #drain(): void {
    for (;;) {
      const [actions, events] = this.#core.take();
      if (actions.length === 0 && events.length === 0) return;
      let saves = false;
      for (const action of actions) {
        switch (action.do) {
          case "dial":
            this.#dial(action.url, action.protocol);
            break;
          case "send":
            this.#send(action.message, action.isOptional);
            break;
          case "hangUp":
            this.#hangUp(action.code, action.reason);
            break;
          case "askToken":
            void this.#askToken(action.why);
            break;
          case "save":
            saves = true;
        }
      }
      for (const [record, event] of events) {
        if (record === null) this.#handle(event);
        else (record.owner as Subscription).handle(event);
      }
      // Now the iterators hold the events that positions count.
      if (saves) void this.#save();
    }
  }

  #send(message: string | Uint8Array, isOptional: boolean): void {
    const socket = this.#socket;
    if (socket?.readyState !== 1 || (isOptional && socket.bufferedAmount > OUTPUT_BYTES_MAX)) return;
    socket.send(message as string);
  }

  #handle(event: ClientEvent): void {
    for (const stream of this.#streams) stream.push(event);
    if (event.type === "state" && event.state === "disconnected") {
      const error = (this.#end = endError(event.code, event.reason));
      for (const { owner } of this.#core.subscriptions.all) (owner as Subscription).end(error);
      for (const stream of this.#streams) stream.end(error);
      this.#streams.clear();
    }
    this.emit(event);
  }

  #dial(url: string, protocol: string): void {
    let socket: WebSocketLike;
    try {
      socket = new this.#webSocket(url, [protocol]);
    } catch (error) {
      // Such as a page that may not connect there.
      queueMicrotask(() => this.run((core) => core.handleClosed(CODE_LOST, String(error))));
      return;
    }
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    // A socket that was given up says nothing any more.
    const from = (call: (core: Core) => void) => socket === this.#socket && this.run(call);
    socket.onopen = () => from((core) => core.handleOpen(socket.protocol));
    socket.onmessage = ({ data }) => from((core) => core.handleMessage(data));
    socket.onclose = ({ code, reason }) =>
      from((core) => {
        this.#socket = null;
        core.handleClosed(code, reason);
      });
    // Followed by a close event. Without a listener, some implementations throw.
    socket.onerror = () => {};
  }

  #hangUp(code: number, reason: string): void {
    this.#socket?.close(code, reason.slice(0, CLOSE_REASON_CHARS_MAX));
    this.#socket = null;
  }

  async #askToken(why: "connect" | "refresh"): Promise<void> {
    const ask = ++this.#asks;
    let token: unknown;
    let reason = "no token";
    try {
      token = await this.#options.getToken!(why);
    } catch (error) {
      reason = error instanceof Error ? error.message : String(error);
    }
    // A later call has taken the place of one that took too long.
    if (ask !== this.#asks) return;
    this.run((core) => (typeof token === "string" && token ? core.handleToken(token) : core.handleTokenFailed(reason)));
  }

  async #save(): Promise<void> {
    this.#saves += 1;
    if (this.#saves > 1) return;
    do {
      this.#saves = 1;
      try {
        await this.#options.savePositions!(this.positions);
      } catch (error) {
        report(error);
      }
    } while (this.#saves > 1);
    this.#saves = 0;
  }

  #schedule(): void {
    const at = this.#core.nextTimeout;
    if (at === this.#timerAt) return;
    clearTimeout(this.#timer);
    this.#timerAt = at;
    if (at === Infinity) return;
    const delay = Math.min(Math.max(Math.ceil(at - performance.now()), 0), TIMER_MAX_MS);
    this.#timer = setTimeout(() => {
      this.#timerAt = Infinity;
      this.run((core) => core.handleTimeout());
    }, delay);
  }
}
