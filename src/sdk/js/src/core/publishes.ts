// Publishes that wait for a connection or for an answer.

import { type Published, PublishError } from "./events.js";
import {
  MESSAGE_ID_MS,
  NO_ANSWER,
  OFFLINE_QUEUE_BYTES_MAX,
  type PublishMessage,
  PUBLISHES_UNANSWERED_MAX,
} from "./protocol.js";

/** One publish, until its result is known. */
export interface PublishRecord extends PublishMessage {
  /** When it fails. */
  deadline: number;
  /** Takes the result. */
  settle: (result: Published | PublishError) => void;
  /** Until when the server that it was sent to knows its message id; undefined: it has not been sent. */
  knownUntil?: number;
}

/**
 * Publishes in flight, and those that wait: for a connection, or for answers to others. Each leaves with a result. One with a message id whose
 * answer was lost waits again: the server publishes it once.
 */
export class Publishes {
  readonly #queueMax: number;
  /** In flight, by request number, oldest first. Bound: {@link PUBLISHES_UNANSWERED_MAX}. */
  readonly #sent = new Map<number, PublishRecord>();
  /** Oldest first. Those that have been sent come first, because they were in flight. */
  #queue: PublishRecord[] = [];
  /** Epoch of the server of the last connection. */
  #epoch = 0;

  constructor(queueMax: number) {
    this.#queueMax = queueMax;
  }

  /** When the next one fails; Infinity: never. */
  get deadline(): number {
    return Math.min(...[...this.#sent.values(), ...this.#queue].map((publish) => publish.deadline));
  }

  /** Lets one wait that has not been sent. Those that have been do not count. A text's characters count as one byte. */
  queue(publish: PublishRecord): void {
    const queue = [publish, ...this.#queue].filter(({ knownUntil }) => !knownUntil);
    const bytes = queue.reduce((sum, { payload }) => sum + payload.length, 0);
    if (queue.length > this.#queueMax || bytes > OFFLINE_QUEUE_BYTES_MAX) {
      return this.fail(publish, 0, "too many publishes");
    }
    this.#queue.push(publish);
  }

  /** There is a connection to the server with this epoch. Fails those sent to another server, or too long ago. */
  reconnect(epoch: number, now: number): void {
    this.#failAll(({ knownUntil }) => knownUntil && (epoch !== this.#epoch || now >= knownUntil), 0, "forgotten");
    this.#epoch = epoch;
  }

  /** Whether another one may be sent. While there is a connection, none waits then. */
  get hasRoom(): boolean {
    return this.#sent.size < PUBLISHES_UNANSWERED_MAX;
  }

  /** Takes one that waits and may be sent now. */
  next(): PublishRecord | undefined {
    return this.hasRoom ? this.#queue.shift() : undefined;
  }

  sent(request: number, publish: PublishRecord, now: number): void {
    this.#sent.set(request, publish);
    publish.knownUntil ??= now + MESSAGE_ID_MS;
  }

  /** Fails one that is not in flight. If it has been, it may have been published. */
  fail(publish: PublishRecord, code: number, reason: string): void {
    publish.settle(new PublishError(publish.knownUntil ? "unknown" : "not_sent", code, reason));
  }

  /** The server's answer on this connection. A late one, after the time-out, means nothing. */
  answer(request: number, result: Published | PublishError): void {
    this.#sent.get(request)?.settle(result);
    this.#sent.delete(request);
  }

  /** Fails what is due; at Infinity, all. */
  expire(now: number, code = 0, reason = NO_ANSWER): void {
    this.#failAll(({ deadline }) => deadline <= now, code, reason);
  }

  /** The connection is lost, and with it the answers. */
  lose(code: number, reason: string): void {
    const sent = [...this.#sent.values()];
    this.#sent.clear();
    this.#queue = [...sent, ...this.#queue];
    this.#failAll(({ knownUntil, messageId }) => knownUntil && !messageId, code, reason);
  }

  #failAll(which: (publish: PublishRecord) => unknown, code: number, reason: string): void {
    const failed = [...this.#sent.values(), ...this.#queue].filter(which);
    for (const [request, publish] of this.#sent) if (which(publish)) this.#sent.delete(request);
    this.#queue = this.#queue.filter((publish) => !which(publish));
    for (const publish of failed) this.fail(publish, code, reason);
  }
}
