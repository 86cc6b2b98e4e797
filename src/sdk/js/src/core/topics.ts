// The topics of one connection, and the ranges that the client itself has to announce.

import type { Skipped } from "./events.js";
import { type Position, ProtocolError, TOPICS_MAX } from "./protocol.js";
import type { SubscriptionRecord } from "./subscriptions.js";

/** Skipped ticks from `from` on. Where they end is not known yet. */
interface OpenRange {
  kind: "gap" | "conflated";
  from: number;
}

/** One topic of the connection. */
export class Topic {
  /** Subscriptions that match it, as of {@link version}. */
  targets: SubscriptionRecord[] = [];
  version = -1;
  /** Whether a tick, gap or conflated range has arrived. */
  isReceived = false;
  range: OpenRange | null = null;
  /** The server repeats ticks up to this sequence. */
  repeatedTo = 0;
  /** Its number on this connection. */
  id!: number;

  constructor(
    readonly name: string,
    readonly epoch: number,
  ) {}

  /** Skipped ticks that end before this one, or the first one of a range that the server announced. */
  skippedBefore(sequence: number, snapshot: boolean): Skipped | null {
    const { range, isReceived } = this;
    this.isReceived = true;
    if (range === null) return null;
    this.range = snapshot ? { ...range, from: Math.max(range.from, sequence + 1) } : null;
    return snapshot || !isReceived ? this.#skipped(range, sequence) : null;
  }

  #skipped({ kind, from }: OpenRange, to: number): Skipped | null {
    if (from >= to) return null;
    return { type: kind, topic: this.name, epoch: this.epoch, from, to, count: to - from };
  }
}

/** All topics of one connection, by name and by number. */
export class Topics {
  readonly byName = new Map<string, Topic>();
  readonly #byId = new Map<number, Topic>();
  /** Ranges of topics that are not announced yet. Bound: the positions that this connection sent. */
  readonly #ranges = new Map<string, OpenRange>();

  /** The topic with a name or number. */
  find(topic: string | number): Topic {
    const found = typeof topic === "number" ? this.#byId.get(topic) : this.byName.get(topic);
    if (found === undefined) throw new ProtocolError(`unknown topic ${topic}`);
    return found;
  }

  /** Adds a topic, or a new life of it. It has one number, the last. */
  announce(name: string, id: number, epoch: number): void {
    let topic = this.byName.get(name);
    if (topic !== undefined) this.#byId.delete(topic.id);
    else if (this.byName.size >= TOPICS_MAX) throw new ProtocolError("too many topics");
    if (topic?.epoch !== epoch) {
      topic = new Topic(name, epoch);
      topic.range = this.#ranges.get(name) ?? null;
      this.#ranges.delete(name);
      this.byName.set(name, topic);
    }
    topic.id = id;
    this.#byId.set(id, topic);
  }

  /** Opens a range in a topic that this connection does not receive yet. */
  open(name: string, kind: "gap" | "conflated", from: number, repeatedTo = 0): void {
    const topic = this.byName.get(name);
    if (topic === undefined) this.#ranges.set(name, { kind, from });
    else if (!topic.isReceived) Object.assign(topic, { range: { kind, from }, repeatedTo });
  }

  /** Topics that no subscription matches any more start over. */
  leave(names: string[]): void {
    for (const name of names) Object.assign(this.byName.get(name)!, { isReceived: false, range: null, repeatedTo: 0 });
  }
}

/** The first lost sequence after a position that was not recovered. */
export function firstLost(requested: Position, epoch: number, sequence: number): number {
  // A position ahead of its topic: what lies beyond the topic's end belonged to other ticks, or never existed.
  return requested.epoch === epoch ? Math.min(requested.sequence, sequence) + 1 : 1;
}
