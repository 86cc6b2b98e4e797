// stats.js: latency, rates and clock offset for each second, the sparklines that plot them, and number formatting.

/** Seconds that a sparkline spans: as many as are known, within these bounds. */
const SECONDS = 60;
const SECONDS_MIN = 15;
/** Window over which the fastest delivery is determined. */
const OFFSET_SECONDS = 30;
/** A second that starts this soon after the connection is not measured. */
const STARTUP_MS = 500;
/** Latency samples kept per second. Beyond this, a random subset is kept. */
const SAMPLES_MAX = 4_096;

/**
 * A larger difference between the two clocks means that the wall clock was set, or that the machine slept and
 * `performance.now()` stopped.
 */
const CLOCK_MOVED_MS = 50;
/** Resolution of `Date.now()`, from which the browser's clock is read. */
const CLOCK_RESOLUTION_MS = 1;
const baseNow = () => Date.now() - performance.now();
let base = baseNow();

/** Milliseconds since the Unix epoch, with a finer resolution than `Date.now()`. */
export function wallMs() {
  return base + performance.now();
}

/**
 * Statistics of the ticks received.
 *
 * One-way latency involves two clocks: the producer and the server stamp a tick with theirs, and this browser stamps its
 * arrival. The minimum of (arrival - receipt by the server) is the clock offset plus the fastest delivery. That took between
 * nothing and the fastest round trip, so half of the round trip is subtracted, and half of it is the error: `offsetMs` is the
 * offset and `offsetErrorMs` how far it may be off, both NaN if unknown.
 */
export class Stats {
  /** One value per second, newest last; NaN if there was none. */
  latency = [];
  ticksPerSecond = [];
  /** Values of the last second. */
  p50 = NaN;
  p99 = NaN;
  bytesPerSecond = 0;
  offsetMs = NaN;
  offsetErrorMs = NaN;
  #latencies = [];
  #seen = 0;
  #ticks = 0;
  #bytes = 0;
  #shortest = Infinity;
  #shortestBySecond = [];
  #second = performance.now();
  /** Start of the connection. Its first second is skewed by the page's startup and by the history that the server sends. */
  #startedAt = performance.now();

  bytes(count) {
    this.#bytes += count;
  }

  /** Counts a tick. Only live ticks contribute to latency: snapshots and recovered history are older. */
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

  /** Starts over on a new connection or after a clock change, because clocks and network path may differ. */
  reset() {
    this.#shortest = Infinity;
    this.#shortestBySecond = [];
    this.#latencies = [];
    this.#startedAt = performance.now();
  }

  /** Closes the current second, which is longer if the page was suspended. */
  second(shortestRoundTripMs) {
    const now = performance.now();
    const moved = baseNow();
    if (Math.abs(moved - base) > CLOCK_MOVED_MS) {
      base = moved;
      this.reset();
    }
    const seconds = Math.max((now - this.#second) / 1e3, 0.001);
    const isFirst = this.#second < this.#startedAt + STARTUP_MS;
    this.#second = now;
    keep(this.#shortestBySecond, this.#shortest, OFFSET_SECONDS);
    const shortest = Math.min(...this.#shortestBySecond);
    // Before the first round trip, latency is measured relative to the fastest delivery.
    const delivery = Number.isNaN(shortestRoundTripMs) ? 0 : shortestRoundTripMs / 2;
    const offset = Number.isFinite(shortest) ? shortest - delivery : NaN;
    this.offsetMs = Number.isNaN(shortestRoundTripMs) ? NaN : offset;
    this.offsetErrorMs = Number.isNaN(this.offsetMs) ? NaN : delivery + CLOCK_RESOLUTION_MS;
    const latencies = this.#latencies.sort((a, b) => a - b);
    const quantile = (q) => latencies[Math.min(latencies.length - 1, Math.floor(q * latencies.length))];
    const hasNone = latencies.length === 0 || isFirst;
    this.p50 = hasNone ? NaN : Math.max(0, quantile(0.5) - offset);
    this.p99 = hasNone ? NaN : Math.max(0, quantile(0.99) - offset);
    keep(this.latency, this.p50, SECONDS);
    keep(this.ticksPerSecond, isFirst ? NaN : this.#ticks / seconds, SECONDS);
    this.bytesPerSecond = this.#bytes / seconds;
    this.#latencies = [];
    this.#seen = this.#ticks = this.#bytes = 0;
    this.#shortest = Infinity;
  }
}

/** Appends a value and keeps at most `count` of them. */
function keep(values, value, count) {
  values.push(value);
  if (values.length > count) values.shift();
}

/** Fits a canvas to the pixels that it covers. Returns its context, its size and the pixels per CSS pixel; null if it is hidden. */
export function fitCanvas(canvas) {
  const ratio = devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio);
  const height = Math.round(canvas.clientHeight * ratio);
  if (width === 0 || height === 0) return null;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  return { context: canvas.getContext("2d"), width, height, ratio };
}

/** A line chart that fills its canvas, from 0 to the highest value. */
export class Sparkline {
  #canvas;
  #colours;

  constructor(canvas, colours) {
    this.#canvas = canvas;
    this.#colours = colours;
  }

  draw(values) {
    const canvas = this.#canvas;
    const fitted = fitCanvas(canvas);
    if (fitted === null) return;
    const { context, width, height, ratio } = fitted;
    const { line, area } = this.#colours();
    const known = values.filter((value) => !Number.isNaN(value));
    const top = known.length === 0 ? 1 : Math.max(...known) * 1.1 || 1;
    const seconds = Math.max(SECONDS_MIN, values.length);
    const x = (at) => (at + seconds - values.length) * (width / (seconds - 1));
    const y = (value) => height - ratio - (value / top) * (height - 3 * ratio);
    context.clearRect(0, 0, width, height);
    // A baseline over the full width shows how much of the time span is still empty.
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

/** Ranges `[from, to)` of values that are not NaN. */
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

/** Formats milliseconds with about three significant digits. */
export function ms(value) {
  if (Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 10_000) return `${(value / 1e3).toFixed(1)} s`;
  return `${value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2)} ms`;
}

/** Formats a clock offset with its error, in the unit that both fit; a dash if the error is unknown. */
export function offsetText(offsetMs, errorMs) {
  if (!Number.isFinite(offsetMs) || !Number.isFinite(errorMs)) return "–";
  const isSeconds = Math.abs(offsetMs) >= 10_000;
  const decimals = isSeconds || errorMs < 10 ? 1 : 0;
  const number = (value) => (isSeconds ? value / 1e3 : value).toFixed(decimals);
  const sign = Math.abs(offsetMs) < errorMs ? "" : offsetMs < 0 ? "−" : "+";
  // Within the error, the clocks may agree.
  const offset = sign === "" ? "0" : sign + number(Math.abs(offsetMs));
  return `${offset} ± ${isSeconds && errorMs < 100 ? "0.1" : number(errorMs)} ${isSeconds ? "s" : "ms"}`;
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

/** Formats a count with thousands separators. */
export function count(value) {
  return grouped.format(value);
}

/** Formats a rate, with one decimal below ten. */
export function rate(value) {
  return value === 0 ? "0" : value < 9.95 ? tenths.format(value) : grouped.format(value);
}

/** Formats a count with its noun, singular or plural. */
export function many(value, one, more = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : more}`;
}

/** Formats a duration given in milliseconds. */
export function duration(milliseconds) {
  // Round first, so that 59.7 s becomes 1 min 0 s.
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

/** What to say of topics with deltas (`Market.deltas`) at a maximum rate (0: none); empty if no change is or may be missing. */
export function deltaWarning({ names, conflated }, ticksPerSecond) {
  const isLimited = ticksPerSecond !== 0;
  if (names.length === 0 || (!isLimited && conflated === 0)) return "";
  const which = names.length === 1 ? `${names[0]} publishes` : `${count(names.length)} topics publish`;
  const limit = `At ${many(ticksPerSecond, "tick")}/s the server`;
  if (conflated === 0) return `${which} deltas. ${limit} may conflate them, so changes may be missing here.`;
  const why = isLimited ? `${limit} conflates them` : "This page fell behind, and the server conflated some";
  return `${which} deltas. ${why}, so changes are missing here.`;
}
