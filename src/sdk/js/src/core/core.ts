// The client as a state machine: bytes, time and the application's calls go in; bytes to send and events come out. It has no socket, clock, timer
// or random source.

import { Backoff, leastDelayMs, mayReconnect } from "./backoff.js";
import { Clock } from "./clock.js";
import { Connection, type Phase } from "./connection.js";
import {
  type ClientEvent,
  type ClientState,
  type Published,
  PublishError,
  type SubscribeOptions,
  type SubscriptionEvent,
  type SubscriptionState,
  Tick,
} from "./events.js";
import type { Action, CoreOptions, Emitted } from "./io.js";
import * as protocol from "./protocol.js";
import { type Codec, type Policy, ProtocolError, type Receiver, type Start } from "./protocol.js";
import { Publishes, type PublishRecord } from "./publishes.js";
import { fit, type Resumption, SubscriptionRecord, Subscriptions } from "./subscriptions.js";
import { Timers } from "./timers.js";
import { Token } from "./tokens.js";
import { firstLost, type Topic } from "./topics.js";

/**
 * The client as a state machine. Before each call the driver says what time it is by {@link at}. After it, the driver takes what {@link take} returns, and calls
 * {@link handleTimeout} at {@link nextTimeout}.
 *
 * Invariant: there is a socket if and only if the phase is `opening` or `connected`.
 */
export class Core implements Receiver {
  readonly subscriptions: Subscriptions;
  readonly #options: CoreOptions;
  readonly #codec: Codec;
  readonly #timers = new Timers();
  readonly #backoff: Backoff;
  readonly #publishes: Publishes;
  #actions: Action[] = [];
  #events: Emitted[] = [];
  #now = 0;
  /** Token of the last ping in the message that is decoded; null: none. */
  #pinged: bigint | null = null;
  #phase: Phase = "idle";

  readonly #token: Token;
  #connection = new Connection("");
  #clock = new Clock();
  /** When publishes are looked at. */
  #publishTimer = Infinity;
  /** Whether the positions are about to be saved. */
  #isSaving = false;

  constructor(options: CoreOptions) {
    this.#options = options;
    this.#codec = options.codec;
    this.#backoff = new Backoff(options.random);
    this.#token = new Token(options.token, options.asksToken, options.random);
    this.#publishes = new Publishes(options.offlineQueueMax);
    this.subscriptions = new Subscriptions(options.positions);
  }

  get state(): ClientState {
    if (this.#phase === "idle") return "disconnected";
    return this.#phase === "connected" ? "connected" : "connecting";
  }

  /** Time of the next {@link handleTimeout}; Infinity: none. */
  get nextTimeout(): number {
    return this.#timers.next;
  }

  get clockOffsetMs(): number | null {
    return this.#clock.offsetMs;
  }

  /** Actions and events since the last call. */
  take(): [Action[], Emitted[]] {
    const taken: [Action[], Emitted[]] = [this.#actions, this.#events];
    [this.#actions, this.#events] = [[], []];
    return taken;
  }

  /** It is now this time, in ms of a monotonic clock. Goes before each call. */
  at(now: number): this {
    this.#now = now;
    return this;
  }

  // What the application does.

  connect(): void {
    if (this.#phase !== "idle") return;
    this.#backoff.reset();
    this.#emit({ type: "state", state: "connecting", code: 0, reason: "" });
    this.#dial();
  }

  disconnect(): void {
    if (this.#phase === "idle") return;
    this.#hangUp(protocol.CLOSE_NORMAL, "");
    this.#end(protocol.CLOSE_NORMAL, "disconnected");
  }

  /** Uses a token from now on. */
  setToken(token: string): void {
    this.#token.replace(token);
    if (this.#phase === "connected") this.#refresh();
  }

  /** Makes a subscription, on this and every later connection. Throws if there is one with this pattern already. */
  subscribe(pattern: string, options: SubscribeOptions): SubscriptionRecord {
    const record = new SubscriptionRecord(pattern, options, this.#options.random);
    this.subscriptions.add(record);
    this.#change(record, "subscribing", 0, "");
    if (this.#phase === "connected") this.#subscribe(this.subscriptions.resumption(record));
    return record;
  }

  unsubscribe(record: SubscriptionRecord): void {
    const isSent = this.#isSent(record);
    if (!this.#remove(record, 0, "") || !isSent) return;
    const request = this.#connection.request({ of: "unsubscribe" });
    this.#send(this.#codec.unsubscribe(request, record.pattern));
  }

  /** Changes policy and rate of a subscription. */
  update(record: SubscriptionRecord, policy: Policy | null, maxRate: number | null): void {
    record.delivery = [policy, maxRate];
    if (!this.#isSent(record)) return;
    const request = this.#connection.request({ of: "update", record, delivery: record.delivery });
    this.#send(this.#codec.update(request, record.pattern, policy, maxRate));
  }

  publish(publish: PublishRecord): void {
    if (this.#phase === "idle") {
      this.#publishes.fail(publish, 0, "disconnected");
    } else if (this.#phase === "connected" && this.#publishes.hasRoom) {
      this.#publish(publish);
    } else {
      this.#publishes.queue(publish);
    }
    this.#watchPublishes(publish.deadline);
  }

  // What the driver reports.

  /** The socket is open, with this subprotocol. */
  handleOpen(subprotocol: string): void {
    if (subprotocol !== this.#codec.protocol) {
      return this.#refuse(protocol.CODE_PROTOCOL, `the server chose the subprotocol ${JSON.stringify(subprotocol)}`);
    }
    this.#connection.token = this.#token.value;
    this.#send(this.#codec.hello(protocol.HELLO, this.#options.name, this.#token.value));
  }

  /** A message has arrived: a string, or an ArrayBuffer. */
  handleMessage(message: unknown): void {
    this.#connection.hasHeard = true;
    this.#pinged = null;
    try {
      this.#codec.decode(message, this);
      // One answer a message: a message has room for many more pings than a server needs.
      if (this.#pinged !== null) this.#send(this.#codec.pong(this.#pinged), true);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#refuse(error.code, error.message);
    }
  }

  /** The socket was closed by the other side, or could not be opened. */
  handleClosed(code: number, reason: string): void {
    if (this.#phase === "opening" || this.#phase === "connected") this.#lost(code, reason);
  }

  /** The application's answer to `askToken`. */
  handleToken(token: string): void {
    if (!this.#timers.clear("ask")) return;
    this.#token.backoff.reset();
    const isDialing = this.#phase === "asking";
    this.setToken(token);
    if (isDialing) this.#dial();
  }

  /** The application has no token. */
  handleTokenFailed(reason: string): void {
    if (this.#timers.clear("ask")) this.#handleNoToken(reason);
  }

  #handleNoToken(reason: string): void {
    this.#emit({ type: "error", code: 0, reason });
    const retryInMs = this.#token.backoff.next();
    if (this.#phase !== "asking") return this.#askAgain(retryInMs);
    this.#phase = "waiting";
    this.#emit({ type: "state", state: "connecting", code: 0, reason, retryInMs });
    this.#timers.set("dial", this.#now + retryInMs, () => this.#dial());
  }

  /** Events that kept positions from being saved have been read. */
  handleRead(): void {
    this.subscriptions.isChanged = true;
    this.#watchPositions();
  }

  handleTimeout(): void {
    this.#timers.run(this.#now);
  }

  // What the server says. The codec calls these.

  welcome(_server: string, epoch: number, _session: number, frameBytesMax: number, knowsIds: unknown, knowsMoments: unknown): void {
    if (this.#phase !== "opening") return;
    this.#phase = "connected";
    this.#connection.sizeMax = this.#codec.sizeMax(frameBytesMax);
    Object.assign(this.#connection, { knowsIds, knowsMoments, epoch });
    this.#connection.welcomedAt = this.#now;
    this.#timers.clear("welcome");
    this.#emit({ type: "state", state: "connected", code: 0, reason: "" });
    this.#ping();
    // The hello's token was replaced before the welcome.
    if (this.#connection.token !== this.#token.value) this.#refresh();
    for (const resumption of this.subscriptions.resumptions()) this.#subscribe(resumption);
    this.#publishes.reconnect(epoch, this.#now);
    this.#publishQueued();
  }

  acknowledged(request: number, since: number): void {
    const answered = this.#connection.answered(request);
    if (answered?.of === "update") answered.record.confirmed = answered.delivery;
    if (answered?.of !== "subscribe") return;
    const { record } = answered;
    record.isAcknowledged = true;
    if (since && record.isLive) record.moment = { epoch: this.#connection.epoch, since };
    record.backoff.reset();
    if (record.state !== "unsubscribed") this.#change(record, "subscribed", 0, "");
  }

  announced(name: string, id: number, epoch: number): void {
    this.#connection.topics.announce(name, id, epoch);
    const replaced = this.#connection.replaced.get(name);
    if (replaced === undefined) return;
    this.#connection.replaced.delete(name);
    const [{ epoch: known, sequence }, kind, isRepeated] = replaced;
    const reason = known !== epoch ? "epoch" : kind === "gap" && !isRepeated ? "too_many" : null;
    if (known === epoch) this.#connection.topics.open(name, kind, sequence + 1, isRepeated ? sequence : 0);
    if (reason === null) return;
    this.subscriptions.notRecovered(name, epoch, 0, reason);
    this.#report(name, { type: "recovered", topic: name, epoch, sequence: 0, recovered: false, reason });
  }

  unsubscribed(request: number, pattern: string, code: number, text: string): void {
    if (request !== 0) return void this.#connection.answered(request);
    const record = this.subscriptions.byPattern.get(pattern);
    if (record !== undefined) this.#remove(record, code, text);
  }

  tick(name: string | number, sequence: number, fields: protocol.TickFields): void {
    this.#checkRange(sequence, sequence + 1);
    const topic = this.#connection.topics.find(name);
    const { snapshot } = fields;
    if (sequence <= topic.repeatedTo && !snapshot) return;
    if (!snapshot) this.#clock.handleTick(this.#now + this.#options.wallOffsetMs - fields.ingestNs / 1e6);
    this.#tell(topic, topic.skippedBefore(sequence, snapshot));
    this.#tell(topic, new Tick(topic.name, topic.epoch, sequence, fields));
    this.#advance(topic, sequence);
  }

  skipped(type: "gap" | "conflated", name: string | number, from: number, to: number, count: number): void {
    const topic = this.#connection.topics.find(name);
    this.#checkRange(from, to);
    from = Math.max(from, topic.repeatedTo + 1);
    if (from >= to) return;
    count = Math.min(count, to - from);
    this.#tell(topic, topic.skippedBefore(from, false));
    this.#tell(topic, { type, topic: topic.name, epoch: topic.epoch, from, to, count });
    this.#advance(topic, to - 1);
  }

  recovered(topic: string, epoch: number, sequence: number, recovered: boolean, reason: protocol.NotRecovered | ""): void {
    const requested = this.#connection.requested.get(topic);
    this.#connection.requested.delete(topic);
    if (!recovered) {
      if (requested !== undefined && reason !== "unknown_topic") {
        this.#connection.topics.open(topic, "gap", firstLost(requested, epoch, sequence));
      }
      this.subscriptions.notRecovered(topic, epoch, sequence, reason);
      this.#watchPositions();
    }
    this.#report(topic, { type: "recovered", topic, epoch, sequence, recovered, reason });
  }

  pong(token: number): void {
    const sentAt = this.#connection.pong(token);
    if (sentAt === undefined) return;
    const roundTripMs = this.#now - sentAt;
    this.#clock.handlePong(roundTripMs);
    this.#emit({ type: "latency", roundTripMs, clockOffsetMs: this.#clock.offsetMs });
  }

  ping(token: bigint): void {
    this.#pinged = token;
  }

  error(request: number, code: number, reason: string): void {
    if (request === protocol.HELLO) throw new ProtocolError(reason, code);
    const answered = this.#connection.answered(request);
    switch (answered?.of) {
      case "subscribe":
        return this.#subscribeRefused(answered.record, code, reason);
      case "update": {
        const { record, delivery } = answered;
        // If its subscription was refused, the next attempt carries it.
        if (!this.#isSent(record)) return;
        if (record.delivery === delivery) record.delivery = record.confirmed;
        return void this.#events.push([record, { type: "error", code, reason }]);
      }
      case "publish":
        return this.#answerPublish(request, new PublishError("refused", code, reason));
      case "unsubscribe":
        return;
      case "refresh":
        this.#emit({ type: "error", code, reason });
        if (this.#token.isAskedFor) this.#askAgain(this.#token.backoff.next());
        return;
      default:
        this.#emit({ type: "error", code, reason });
    }
  }

  closing(code: number, reason: string, afterMs: number): void {
    this.#connection.closing = { code, reason, afterMs };
  }

  published(request: number, topic: string, epoch: number, sequence: number, duplicate: boolean): void {
    if (!this.#connection.answered(request)) return;
    this.#answerPublish(request, { topic, epoch, sequence, duplicate });
  }

  expires(request: number, expiresInS: number): void {
    this.#emit({ type: "expires", expiresInS });
    this.#timers.clear("token");
    if (request === 0) return this.#askToken();
    this.#connection.answered(request);
    const staleAt = this.#token.handleExpires(this.#now, expiresInS);
    if (staleAt < Infinity) this.#timers.set("token", staleAt, () => this.#askToken());
  }

  stale(name: string | number, stale: boolean, sinceNs: number): void {
    const topic = this.#connection.topics.find(name);
    this.#tell(topic, { type: "stale", topic: topic.name, stale, sinceNs });
  }

  source(source: string, state: string, sinceNs: number): void {
    this.#emit({ type: "source", source, state, sinceNs });
  }

  // Connections.

  #dial(): void {
    if (this.#token.isAskedFor && this.#now >= this.#token.staleAt) {
      this.#phase = "asking";
      return this.#ask("connect");
    }
    this.#phase = "opening";
    this.#connection = new Connection(this.#token.value);
    this.#clock = new Clock();
    this.#actions.push({ do: "dial", url: this.#options.url, protocol: this.#codec.protocol });
    this.#timers.set("welcome", this.#now + protocol.CONNECT_TIMEOUT_MS, () => {
      this.#giveUp(protocol.CLOSE_NO_WELCOME);
    });
  }

  #giveUp(code: number): void {
    this.#hangUp(code, protocol.NO_ANSWER);
    this.#lost(protocol.CODE_LOST, protocol.NO_ANSWER);
  }

  #checkRange(from: number, to: number): void {
    if (from === 0 || from >= to) throw new ProtocolError(`the server sent the ticks from ${from} to ${to}`);
  }

  /** Closes the socket if there is one. */
  #hangUp(code: number, reason: string): void {
    if (this.#phase === "opening" || this.#phase === "connected") this.#actions.push({ do: "hangUp", code, reason });
  }

  /** The server will not have this client, or broke the protocol. */
  #refuse(code: number, reason: string): void {
    this.#hangUp(protocol.CLOSE_BAD_MESSAGE, reason);
    this.#end(code, reason);
  }

  #lost(closeCode: number, closeReason: string): void {
    const { closing, welcomedAt, token } = this.#connection;
    const { code, reason, afterMs } = closing ?? { code: closeCode, reason: closeReason, afterMs: 0 };
    if (this.#now - welcomedAt >= protocol.STABLE_MS) this.#backoff.reset();
    const isExpired = code === protocol.CLOSE_TOKEN_EXPIRED;
    // Otherwise the next hello has another token already.
    const needsToken = isExpired && token === this.#token.value;
    if (!mayReconnect(code) || (needsToken && !this.#token.isAskedFor)) return this.#end(code, reason);
    if (needsToken) this.#token.staleAt = this.#now;
    let retryInMs = leastDelayMs(code, afterMs);
    if (isExpired && this.#backoff.attempts === 0) this.#backoff.attempts = 1;
    else retryInMs += this.#backoff.next();
    this.#leave("waiting");
    this.#timers.set("dial", this.#now + retryInMs, () => this.#dial());
    this.#emit({ type: "state", state: "connecting", code, reason, retryInMs });
    this.#reportLoss(code, reason);
  }

  /** Makes no more attempts. */
  #end(code: number, reason: string): void {
    this.#leave("idle");
    this.#timers.clear("ask");
    this.#emit({ type: "state", state: "disconnected", code, reason });
    this.#reportLoss(code, reason);
    this.#publishes.expire(Infinity, code, reason);
    this.#timers.clear("publish");
    this.#publishTimer = Infinity;
  }

  /** Ends the state of one connection. */
  #leave(phase: Phase): void {
    this.#phase = phase;
    this.#token.isRefreshing = false;
    for (const name of ["dial", "welcome", "ping", "token", ...this.subscriptions.all]) this.#timers.clear(name);
    if (this.subscriptions.isChanged) this.#save();
  }

  #reportLoss(code: number, reason: string): void {
    for (const record of this.subscriptions.all) {
      record.isSent = false;
      this.#change(record, "subscribing", code, reason);
    }
    this.#publishes.lose(code, reason);
  }

  #ping(): void {
    this.#clock.handlePing();
    this.#send(this.#codec.ping(this.#connection.ping(this.#now)));
    this.#timers.set("ping", this.#now + protocol.PING_INTERVAL_MS, (_, lateMs) => {
      // The machine was asleep: the server's answer may still wait to be read.
      if (lateMs > protocol.SUSPENDED_MS) this.#connection.forgetPing();
      else if (!this.#connection.hasHeard) return this.#giveUp(protocol.CLOSE_SILENT);
      this.#ping();
    });
  }

  #send(message: string | Uint8Array, isOptional = false): void {
    this.#actions.push({ do: "send", message, isOptional });
  }

  // Tokens.

  #askToken(): void {
    if (this.#phase !== "connected" || this.#token.isRefreshing || !this.#token.isAskedFor) return;
    this.#token.isRefreshing = true;
    this.#ask("refresh");
  }

  /** Asks the application, unless it has been asked and has not answered. Whatever it answers after the timeout is ignored. */
  #ask(why: "connect" | "refresh"): void {
    if (this.#timers.has("ask")) return;
    this.#actions.push({ do: "askToken", why });
    this.#timers.set("ask", this.#now + protocol.TOKEN_TIMEOUT_MS, () => this.#handleNoToken(protocol.NO_ANSWER));
  }

  #askAgain(retryInMs: number): void {
    this.#token.isRefreshing = false;
    this.#timers.set("token", this.#now + retryInMs, () => this.#askToken());
  }

  #refresh(): void {
    this.#token.isRefreshing = true;
    this.#send(this.#codec.refresh(this.#connection.request({ of: "refresh" }), this.#token.value));
  }

  // Subscriptions.

  /** Sends a subscription, with the positions that it resumes from. */
  #subscribe([record, positions]: Resumption): void {
    const [policy, maxRate] = (record.confirmed = record.delivery);
    const { pattern } = record;
    const { requested, replaced, sizeMax, knowsMoments } = this.#connection;
    const moment = knowsMoments ? record.moment : undefined;
    const send = (start: Start) => {
      const messages = this.#codec.subscribe(this.#connection.nextRequest, pattern, start, moment, policy, maxRate, sizeMax);
      if (messages.length > 0) this.#connection.request({ of: "subscribe", record });
      record.isSent = true;
      record.isLive = start === "live";
      record.carried = positions;
      for (const message of messages) this.#send(message);
      return messages.length > 0;
    };
    if (positions.length === 0 && !record.isAcknowledged) {
      return void send(record.from === "live" || record.from === "latest" ? record.from : []);
    }
    const isSent = !record.conflates && fit(positions) && send(positions);
    for (const [topic, position] of positions) {
      if (isSent) requested.set(topic, position) && replaced.delete(topic);
      else replaced.set(topic, [position, record.conflates ? "conflated" : "gap", false]);
    }
    if (!isSent) send("latest");
  }

  #subscribeRefused(record: SubscriptionRecord, code: number, reason: string): void {
    if (record.state === "unsubscribed") return;
    record.isSent = false;
    const { requested, replaced, topics } = this.#connection;
    for (const [topic, position] of record.carried) {
      // Others were sent without it, and start elsewhere. One that is announced has been received before.
      const isReceived = this.subscriptions.matching(topic).some((other) => other.isSent);
      if (!isReceived || topics.byName.has(topic)) continue;
      requested.delete(topic);
      replaced.set(topic, [position, "gap", true]);
    }
    if (code !== protocol.ERROR_RATE_LIMITED) return void this.#remove(record, code, reason);
    const retryInMs = record.backoff.next();
    this.#events.push([record, { type: "subscription", state: "subscribing", code, reason, retryInMs }]);
    this.#timers.set(record, this.#now + retryInMs, () => this.#subscribe(this.subscriptions.resumption(record)));
  }

  /** Whether the server has it, or is about to. */
  #isSent(record: SubscriptionRecord): boolean | undefined {
    return record.isSent && this.#phase === "connected" && record.state !== "unsubscribed";
  }

  /** Ends a subscription; returns whether there was one. */
  #remove(record: SubscriptionRecord, code: number, reason: string): boolean {
    if (!this.subscriptions.remove(record)) return false;
    this.#timers.clear(record);
    this.subscriptions.forget(record);
    this.#watchPositions();
    const { topics } = this.#connection;
    topics.leave(this.subscriptions.onlyOf(record, topics.byName));
    this.#change(record, "unsubscribed", code, reason);
    return true;
  }

  #change(record: SubscriptionRecord, state: SubscriptionState, code: number, reason: string): void {
    record.state = state;
    this.#events.push([record, { type: "subscription", state, code, reason }]);
  }

  #advance(topic: Topic, sequence: number): void {
    // What was on its way when its subscription ended is no progress.
    if (topic.targets.length === 0) return;
    this.subscriptions.advance(topic.name, topic.epoch, sequence);
    this.#watchPositions();
  }

  #watchPositions(): void {
    if (!this.#options.savesPositions || this.#isSaving || !this.subscriptions.isChanged) return;
    this.#isSaving = true;
    this.#timers.set("save", this.#now + protocol.SAVE_INTERVAL_MS, () => this.#save());
  }

  #save(): void {
    this.#isSaving = false;
    this.#timers.clear("save");
    this.subscriptions.isChanged = false;
    if (this.#options.savesPositions) this.#actions.push({ do: "save" });
  }

  // Publishes.

  #publish(publish: PublishRecord): void {
    const message = this.#codec.publish(this.#connection.nextRequest, publish);
    if (this.#codec.size(message) > this.#connection.sizeMax) {
      return this.#publishes.fail(publish, protocol.ERROR_TOO_LARGE, "too large");
    }
    // A server of version 0.1 would take the id of a native frame for a part of the payload.
    if (publish.messageId && !this.#connection.knowsIds) {
      return this.#publishes.fail(publish, protocol.ERROR_BAD_REQUEST, "no message_ids");
    }
    this.#publishes.sent(this.#connection.request({ of: "publish" }), publish, this.#now);
    this.#send(message);
  }

  /** Sends those that wait, as far as the bound of those without an answer allows. */
  #publishQueued(): void {
    for (let publish; (publish = this.#publishes.next()) !== undefined; ) this.#publish(publish);
  }

  #answerPublish(request: number, result: Published | PublishError): void {
    this.#publishes.answer(request, result);
    this.#publishQueued();
  }

  /** Expires publishes at their deadlines. The timer is not moved when one is answered: it finds nothing then. */
  #watchPublishes(deadline: number): void {
    if (deadline >= this.#publishTimer) return;
    this.#publishTimer = deadline;
    this.#timers.set("publish", deadline, (now) => {
      this.#publishTimer = Infinity;
      this.#publishes.expire(now);
      if (this.#phase === "connected") this.#publishQueued();
      this.#watchPublishes(this.#publishes.deadline);
    });
  }

  // Events.

  #emit(event: ClientEvent): void {
    this.#events.push([null, event]);
  }

  /** Reports an event of a topic to the subscriptions that match it. */
  #tell(topic: Topic, event: SubscriptionEvent | null): void {
    if (event === null) return;
    if (topic.version !== this.subscriptions.version) {
      topic.version = this.subscriptions.version;
      topic.targets = this.subscriptions.matching(topic.name);
    }
    for (const record of topic.targets) this.#events.push([record, event]);
  }

  /** {@link #tell} for a topic that may not be announced. */
  #report(topic: string, event: SubscriptionEvent): void {
    for (const record of this.subscriptions.matching(topic)) this.#events.push([record, event]);
  }
}
