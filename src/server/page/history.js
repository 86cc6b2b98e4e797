// history.js: recent values of a topic, and the scale that its chart has. No DOM.

/** Time between two values, and the number kept: two minutes. */
export const SAMPLE_MS = 500;
export const POINTS_MAX = 240;

/** The last POINTS_MAX values, one for each SAMPLE_MS; NaN where there was none. */
export class History {
  #values = null;
  #next = 0;
  length = 0;

  push(value) {
    // Most topics are never looked at: no memory before the first number.
    if (this.#values === null && Number.isNaN(value)) return;
    this.#values ??= new Float64Array(POINTS_MAX);
    this.#values[this.#next] = value;
    this.#next = (this.#next + 1) % POINTS_MAX;
    this.length = Math.min(POINTS_MAX, this.length + 1);
  }

  clear() {
    this.#values = null;
    this.#next = this.length = 0;
  }

  /** The values, oldest first. */
  values() {
    const first = (this.#next - this.length + POINTS_MAX) % POINTS_MAX;
    return Array.from({ length: this.length }, (_, at) => this.#values[(first + at) % POINTS_MAX]);
  }
}

const STEPS = [1, 2, 2.5, 5, 10];

/**
 * A scale for values: `{low, high, decimals}`, round numbers around all of them, and the decimals that tell them apart. `null`
 * without a finite value.
 */
export function scaleOf(values) {
  const known = values.filter(Number.isFinite);
  if (known.length === 0) return null;
  let [low, high] = [Math.min(...known), Math.max(...known)];
  if (low === high) {
    // A constant lies in the middle.
    const margin = Math.abs(low) / 1_000 || 1;
    [low, high] = [low - margin, high + margin];
  }
  const rough = (high - low) / 2;
  const power = 10 ** Math.floor(Math.log10(rough));
  // The finest step whose two intervals hold all values.
  for (const factor of [...STEPS, 20, 25, 50]) {
    const step = factor * power;
    const from = Math.floor(low / step + 1e-9) * step;
    const to = from + 2 * step;
    if (!Number.isFinite(to)) return null;
    if (to < high - step * 1e-9) continue;
    const isHalf = factor === 2.5 || factor === 25;
    return { low: from, high: to, decimals: Math.min(12, Math.max(0, -Math.floor(Math.log10(step)) + (isHalf ? 1 : 0))) };
  }
  return null;
}
