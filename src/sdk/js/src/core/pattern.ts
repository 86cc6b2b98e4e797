// Patterns, as in NATS: `*` is one token, `>` at the end one or more.

/** Returns whether a pattern matches a topic. */
export function matches(pattern: string, topic: string): boolean {
  const expected = pattern.split(".");
  const tokens = topic.split(".");
  for (const [at, token] of expected.entries()) {
    if (token === ">" && at === expected.length - 1) return tokens.length > at;
    if (at >= tokens.length || (token !== "*" && token !== tokens[at])) return false;
  }
  return expected.length === tokens.length;
}
