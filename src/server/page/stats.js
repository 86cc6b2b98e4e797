// stats.js: latency, rates and the difference of the clocks, second by second, and the small curves of them.

/** Seconds that a curve shows in its width: as many as there are, within these bounds. */
const SECONDS = 60;
const SECONDS_MIN = 15;
/** Seconds over which the shortest way here is looked for. */
const OFFSET_SECONDS = 30;
/** A second that began so soon after its connection is no measure. */
const BEGINNING_MS = 500;
/** Latencies kept of one second; of more, a random part. */
const SAMPLES_MAX = 4_096;

/** Beyond this, the clock was set, or the machine slept: `performance.now()` may stand still then. */
const CLOCK_MOVED_MS = 50;
const baseNow = () => Date.now() - performance.now();
let base = baseNow();

/** Milliseconds since 1970, finer than `Date.now()`. */
export function wallMs() {
  return base + performance.now();
}

/**
 * Counts what comes. One way is measured with two clocks: a tick's time is the producer's and the server's, its arrival
 * this browser's. The shortest of (arrival - server's receipt) is the difference of the clocks and the shortest way
 * here, which is taken for half of the shortest round trip: that is what `offsetMs` is.
 */
export class Stats {
  /** Curves, newest last; NaN: nothing came. */
  latency = [];
  ticksPerSecond = [];
  /** Of the last second. */
  p50 = NaN;
  p99 = NaN;
  bytesPerSecond = 0;
  offsetMs = NaN;
  #latencies = [];
  #seen = 0;
  #ticks = 0;
  #bytes = 0;
  #shortest = Infinity;
  #shortestBySecond = [];
  #second = performance.now();
  /** When the connection began: that second says how long this page took to begin, and what the server still had. */
  #begun = performance.now();

  bytes(count) {
    this.#bytes += count;
  }

  /** A tick that was sent as it came; one of a snapshot or of the past only counts. */
  tick(arrivalMs, producerNs, receiptNs, isLive) {
    this.#ticks += 1;
    if (!isLive) return;
    this.#shortest = Math.min(this.#shortest, arrivalMs - receiptNs / 1e6);
    this.#seen += 1;
    const latency = arrivalMs - producerNs / 1e6;
    if (this.#latencies.length < SAMPLES_MAX) this.#latencies.push(latency);
    else if (Math.random() * this.#seen < SAMPLES_MAX) {
      this.#latencies[Math.floor(Math.random() * SAMPLES_MAX)] = latency;
    }
  }

  /** Another connection, perhaps by another way: the clocks are compared anew. */
  anew() {
    this.#shortest = Infinity;
    this.#shortestBySecond = [];
    this.#latencies = [];
    this.#begun = performance.now();
  }

  /** The end of a second, or of however long this page slept. */
  second(shortestRoundTripMs) {
    const now = performance.now();
    const moved = baseNow();
    if (Math.abs(moved - base) > CLOCK_MOVED_MS) {
      base = moved;
      this.anew();
    }
    const seconds = Math.max((now - this.#second) / 1e3, 0.001);
    const isFirst = this.#second < this.#begun + BEGINNING_MS;
    this.#second = now;
    keep(this.#shortestBySecond, this.#shortest, OFFSET_SECONDS);
    const shortest = Math.min(...this.#shortestBySecond);
    // Without a round trip the way here counts as difference of the clocks: latency is then above the shortest.
    const way = Number.isNaN(shortestRoundTripMs) ? 0 : shortestRoundTripMs / 2;
    this.offsetMs = Number.isFinite(shortest) ? shortest - way : NaN;
    const latencies = this.#latencies.sort((a, b) => a - b);
    const at = (share) => latencies[Math.min(latencies.length - 1, Math.floor(share * latencies.length))];
    const none = latencies.length === 0 || isFirst;
    this.p50 = none ? NaN : Math.max(0, at(0.5) - this.offsetMs);
    this.p99 = none ? NaN : Math.max(0, at(0.99) - this.offsetMs);
    keep(this.latency, this.p50, SECONDS);
    keep(this.ticksPerSecond, isFirst ? NaN : this.#ticks / seconds, SECONDS);
    this.bytesPerSecond = this.#bytes / seconds;
    this.#latencies = [];
    this.#seen = this.#ticks = this.#bytes = 0;
    this.#shortest = Infinity;
  }
}

function keep(curve, value, count) {
  curve.push(value);
  if (curve.length > count) curve.shift();
}

/** Draws a curve over the whole canvas, from 0 to its highest value. */
export class Sparkline {
  #canvas;
  #colours;

  constructor(canvas, colours) {
    this.#canvas = canvas;
    this.#colours = colours;
  }

  draw(values) {
    const canvas = this.#canvas;
    const ratio = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (width === 0 || height === 0) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext("2d");
    const { line, area } = this.#colours();
    const known = values.filter((value) => !Number.isNaN(value));
    const top = known.length === 0 ? 1 : Math.max(...known) * 1.1 || 1;
    const seconds = Math.max(SECONDS_MIN, values.length);
    const x = (at) => (at + seconds - values.length) * (width / (seconds - 1));
    const y = (value) => height - ratio - (value / top) * (height - 3 * ratio);
    context.clearRect(0, 0, width, height);
    // All along, so that a short curve is seen to have only begun.
    context.fillStyle = area;
    context.fillRect(0, height - ratio, width, ratio);
    context.lineWidth = 1.5 * ratio;
    context.lineJoin = "round";
    context.strokeStyle = line;
    for (const [from, to] of runs(values)) {
      context.beginPath();
      for (let at = from; at < to; at += 1) context.lineTo(x(at), y(values[at]));
      context.stroke();
      context.lineTo(x(to - 1), height);
      context.lineTo(x(from), height);
      context.fill();
    }
  }
}

/** Where values are known: `[from, to)`, one run after the other. */
function runs(values) {
  const found = [];
  let from = -1;
  for (let at = 0; at <= values.length; at += 1) {
    const known = at < values.length && !Number.isNaN(values[at]);
    if (known && from < 0) from = at;
    if (!known && from >= 0) {
      found.push([from, at]);
      from = -1;
    }
  }
  return found;
}

/** Milliseconds as text, three digits of it. */
export function ms(value) {
  if (Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 10_000) return `${(value / 1e3).toFixed(1)} s`;
  return `${value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2)} ms`;
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

/** A count with groups of three digits. */
export function count(value) {
  return grouped.format(value);
}

/** A rate: one decimal below ten. */
export function rate(value) {
  return value === 0 ? "0" : value < 9.95 ? tenths.format(value) : grouped.format(value);
}

/** A count and its noun. */
export function many(value, one, more = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : more}`;
}

/** Seconds as text. */
export function duration(milliseconds) {
  // Rounded before it is divided: 59.7 s are a minute.
  const seconds = Math.round(milliseconds / 1e3);
  if (seconds < 60) return milliseconds < 9_950 ? `${(milliseconds / 1e3).toFixed(1)} s` : `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(value) {
  if (value < 1e3) return `${Math.round(value)} B`;
  return value < 1e6 ? `${(value / 1e3).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
}
