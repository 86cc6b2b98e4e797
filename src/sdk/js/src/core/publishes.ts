// Publishes that wait for a connection or for an answer.

import { type Published, PublishError } from "./events.js";
import {
  MESSAGE_ID_MS,
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
 * While the client is connected, the publishes sent; otherwise those that wait for a connection. Each leaves with a result. One with a
 * message id whose answer was lost waits again: the server publishes it once.
 */
export class Publishes {
  readonly #queueMax: number;
  /**
   * By request number; those that have none yet by themselves. Oldest first. Bound: at most {@link PUBLISHES_UNANSWERED_MAX} of those
   * that have been sent, and the queue of those that have not.
   */
  readonly #all = new Map<number | PublishRecord, PublishRecord>();
  /** Epoch of the server of the last connection. */
  #epoch = 0;

  constructor(queueMax: number) {
    this.#queueMax = queueMax;
  }

  /** When the next one fails; Infinity: never. */
  get deadline(): number {
    return Math.min(...[...this.#all.values()].map((publish) => publish.deadline));
  }

  /** Lets one wait that has not been sent. Those that have been do not count. A text's characters count as one byte. */
  queue(publish: PublishRecord): void {
    const queue = [publish, ...this.#all.values()].filter(({ knownUntil }) => !knownUntil);
    const bytes = queue.reduce((sum, { payload }) => sum + payload.length, 0);
    if (queue.length > this.#queueMax || bytes > OFFLINE_QUEUE_BYTES_MAX) {
      return this.fail(publish, 0, "too many publishes wait");
    }
    this.#all.set(publish, publish);
  }

  /** Empties the queue on a connection to the server with this epoch. Fails those sent to another server, or too long ago. */
  take(epoch: number, now: number): PublishRecord[] {
    this.#failAll(
      ({ knownUntil }) => knownUntil && (epoch !== this.#epoch || now >= knownUntil),
      0,
      "forgotten",
    );
    this.#epoch = epoch;
    const queue = [...this.#all.values()];
    this.#all.clear();
    return queue;
  }

  /** Whether another one may be sent. If not, it has failed. */
  admits(publish: PublishRecord): boolean {
    if (this.#all.size < PUBLISHES_UNANSWERED_MAX) return true;
    this.fail(publish, 0, "too many publishes wait");
    return false;
  }

  sent(request: number, publish: PublishRecord, now: number): void {
    this.#all.set(request, publish);
    publish.knownUntil ??= now + MESSAGE_ID_MS;
  }

  /** Fails one that is not in flight. If it has been, it may have been published. */
  fail(publish: PublishRecord, code: number, reason: string): void {
    publish.settle(new PublishError(publish.knownUntil ? "unknown" : "not_sent", code, reason));
  }

  /** The server's answer on this connection. A late one, after the time-out, means nothing. */
  answer(request: number, result: Published | PublishError): void {
    this.#all.get(request)?.settle(result);
    this.#all.delete(request);
  }

  /** Fails what is due; at Infinity, all. */
  expire(now: number, code = 0, reason = "no answer in time"): void {
    this.#failAll(({ deadline }) => deadline <= now, code, reason);
  }

  /** The connection is lost, and with it the answers. */
  lose(code: number, reason: string): void {
    this.#failAll(({ knownUntil, messageId }) => knownUntil && !messageId, code, reason);
  }

  #failAll(which: (publish: PublishRecord) => unknown, code: number, reason: string): void {
    for (const [request, publish] of this.#all) {
      if (which(publish)) {
        this.#all.delete(request);
        this.fail(publish, code, reason);
      }
    }
  }
}
