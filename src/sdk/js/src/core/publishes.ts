// Publishes that wait for a connection or for an answer.

import { type Published, PublishError } from "./events.js";
import { OFFLINE_QUEUE_BYTES_MAX, type PublishMessage, PUBLISHES_UNANSWERED_MAX } from "./protocol.js";

/** One publish, until its result is known. */
export interface PublishRecord extends PublishMessage {
  /** When it fails. */
  deadline: number;
  /** Takes the result. */
  settle: (result: Published | PublishError) => void;
}

/** Bytes that a payload counts in the queue; a text's characters count as one. */
const bytes = ({ payload }: PublishRecord) => payload.length;

/** Two queues, both bounded: publishes not sent yet, and publishes sent. Each leaves with a result. */
export class Publishes {
  readonly #queueMax: number;
  readonly #queue = new Set<PublishRecord>();
  #queueBytes = 0;
  readonly #sent = new Map<number, PublishRecord>();

  constructor(queueMax: number) {
    this.#queueMax = queueMax;
  }

  /** When the next one fails; Infinity: never. */
  get deadline(): number {
    let deadline = Infinity;
    for (const publish of this.#queue) deadline = Math.min(deadline, publish.deadline);
    for (const publish of this.#sent.values()) deadline = Math.min(deadline, publish.deadline);
    return deadline;
  }

  queue(publish: PublishRecord): void {
    if (this.#queue.size >= this.#queueMax || this.#queueBytes + bytes(publish) > OFFLINE_QUEUE_BYTES_MAX) {
      return publish.settle(new PublishError("not_sent", 0, "too many publishes wait for a connection"));
    }
    this.#queue.add(publish);
    this.#queueBytes += bytes(publish);
  }

  /** Empties the queue. */
  take(): PublishRecord[] {
    const queue = [...this.#queue];
    this.#queue.clear();
    this.#queueBytes = 0;
    return queue;
  }

  /** Whether another one may be sent. If not, it has failed. */
  admits(publish: PublishRecord): boolean {
    if (this.#sent.size < PUBLISHES_UNANSWERED_MAX) return true;
    publish.settle(new PublishError("not_sent", 0, "too many publishes wait for their answer"));
    return false;
  }

  sent(request: number, publish: PublishRecord): void {
    this.#sent.set(request, publish);
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
      if (publish.deadline <= now) this.answer(request, new PublishError("unknown", 0, "no answer in time"));
    }
    for (const publish of this.#queue) {
      if (publish.deadline > now) continue;
      this.#queue.delete(publish);
      this.#queueBytes -= bytes(publish);
      publish.settle(new PublishError("not_sent", 0, "no connection in time"));
    }
  }

  /** The connection is lost, and with it the answers. */
  lose(code: number, reason: string): void {
    for (const request of [...this.#sent.keys()]) {
      this.answer(request, new PublishError("unknown", code, reason));
    }
  }

  /** The client makes no more attempts. */
  drop(code: number, reason: string): void {
    for (const publish of this.take()) publish.settle(new PublishError("not_sent", code, reason));
  }
}
