// Patterns, as in NATS: `*` is one token, `>` at the end one or more.

/** A pattern, split once and compared with many topics. */
export class Pattern {
  readonly #tokens: string[];
  readonly #hasRest: boolean;
  /** Whether it has no wildcard: it matches the topic of its own name only. */
  readonly isExact: boolean;

  constructor(pattern: string) {
    this.#tokens = pattern.split(".");
    this.#hasRest = this.#tokens.at(-1) === ">";
    if (this.#hasRest) this.#tokens.pop();
    this.isExact = !this.#hasRest && !this.#tokens.includes("*");
  }

  /** Whether it matches the topic with these tokens. */
  matches(tokens: string[]): boolean {
    const { length } = this.#tokens;
    if (this.#hasRest ? tokens.length <= length : tokens.length !== length) return false;
    return this.#tokens.every((token, at) => token === "*" || token === tokens[at]);
  }
}

/** Returns whether a pattern matches a topic. */
export function matches(pattern: string, topic: string): boolean {
  return new Pattern(pattern).matches(topic.split("."));
}
