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
 * Two queues, both bounded: publishes that wait, and publishes sent. Each leaves with a result. One with a message id whose answer was lost
 * waits again: the server publishes it once.
 */
export class Publishes {
  readonly #queueMax: number;
  #queue: PublishRecord[] = [];
  readonly #sent = new Map<number, PublishRecord>();
  /** Epoch of the server of the last connection. */
  #epoch = 0;

  constructor(queueMax: number) {
    this.#queueMax = queueMax;
  }

  /** When the next one fails; Infinity: never. */
  get deadline(): number {
    return Math.min(...[...this.#queue, ...this.#sent.values()].map((publish) => publish.deadline));
  }

  /** Lets one wait. A text's characters count as one byte. */
  queue(publish: PublishRecord): void {
    const bytes = [publish, ...this.#queue].reduce((sum, { payload }) => sum + payload.length, 0);
    if (this.#queue.length >= this.#queueMax || bytes > OFFLINE_QUEUE_BYTES_MAX) {
      return this.fail(publish, 0, "too many publishes wait");
    }
    this.#queue.push(publish);
  }

  /** Empties the queue on a connection to the server with this epoch. What only another server knows, or did, has failed. */
  take(epoch: number, now: number): PublishRecord[] {
    const queue = this.#takeAll().filter((publish) => {
      const isKnown = !publish.knownUntil || (epoch === this.#epoch && now < publish.knownUntil);
      if (!isKnown) this.fail(publish, 0, "the server has forgotten it");
      return isKnown;
    });
    this.#epoch = epoch;
    return queue;
  }

  #takeAll(): PublishRecord[] {
    const queue = this.#queue;
    this.#queue = [];
    return queue;
  }

  /** Whether another one may be sent. If not, it has failed. */
  admits(publish: PublishRecord): boolean {
    if (this.#sent.size < PUBLISHES_UNANSWERED_MAX) return true;
    this.fail(publish, 0, "too many publishes wait");
    return false;
  }

  sent(request: number, publish: PublishRecord, now: number): void {
    this.#sent.set(request, publish);
    publish.knownUntil ??= now + MESSAGE_ID_MS;
  }

  /** Fails one that is not in flight. If it has been, it may have been published. */
  fail(publish: PublishRecord, code: number, reason: string): void {
    publish.settle(new PublishError(publish.knownUntil ? "unknown" : "not_sent", code, reason));
  }

  /** The server's answer. A late one, after the time-out, means nothing. */
  answer(request: number, result: Published | PublishError): void {
    const publish = this.#sent.get(request);
    this.#sent.delete(request);
    publish?.settle(result);
  }

  /** Fails what is due. */
  expire(now: number): void {
    for (const [request, publish] of this.#sent) {
      if (publish.deadline > now) continue;
      this.#sent.delete(request);
      this.fail(publish, 0, "no answer in time");
    }
    for (const publish of this.#takeAll()) {
      if (publish.deadline > now) this.#queue.push(publish);
      else this.fail(publish, 0, "no answer in time");
    }
  }

  /** The connection is lost, and with it the answers. */
  lose(code: number, reason: string): void {
    const sent = [...this.#sent.values()];
    this.#sent.clear();
    for (const publish of sent) {
      if (publish.messageId === "") this.fail(publish, code, reason);
      else this.queue(publish);
    }
  }

  /** The client makes no more attempts. */
  drop(code: number, reason: string): void {
    for (const publish of this.#takeAll()) this.fail(publish, code, reason);
  }
}
