// wave.js: a ring buffer of the samples of `ecg.wave`, indexed by sample number since the start of the record. Samples of
// lost batches are marked as lost rather than left out.

/** Samples kept: this many seconds, plus the batches that the trace is behind and the one arriving. */
const KEPT_S = 20;
const KEPT_BATCHES = 3.5;
/** Highest sampling rate accepted, Hz, and most samples per batch: the largest frame holds no more. */
const FS_MAX = 100_000;
const BATCH_MAX = 65_536;
/** Longest signal or record name shown. */
const NAME_CHARS_MAX = 64;
/** Without a batch for this long, and for this many batch durations, there is no signal. */
const NO_SIGNAL_MS = 1_500;
const NO_SIGNAL_BATCHES = 3;
/** After this many consecutive batches with an implausible time, the new time is taken as correct. */
const IMPLAUSIBLE_MAX = 8;
/** Batches held until the first `ecg.info` arrives. */
const PENDING_MAX = 512;
const BEATS_MAX = 64;

const NONE = 0;
const SAMPLE = 1;
const LOST = 2;

export class Wave {
  /** The payload of `ecg.info`; `null` before the first. */
  info = null;
  /** One past the newest sample; -1 before the first. */
  end = -1;
  batches = 0;
  /** Batches announced as lost, or missing without an announcement. */
  lost = 0;
  /** Sample numbers of the R peaks, newest last. */
  beats = [];
  /** Batches ignored because their time does not fit the others. */
  ignored = 0;
  /** `performance.now()` at the newest batch; 0 before the first. */
  batchAt = 0;
  bpm = NaN;
  rrMs = NaN;
  /** Grows when samples change that may have been drawn already. */
  changes = 0;
  #samples = new Float32Array(0);
  #kinds = new Uint8Array(0);
  #pending = [];
  /** Producer time minus server time of the previous batch, ms. */
  #ahead = NaN;
  #implausibleInARow = 0;

  /** Whether batches are arriving. */
  get isFlowing() {
    const batchMs = this.info === null ? 0 : (1e3 * this.info.batch) / this.info.fs;
    return this.batchAt !== 0 && performance.now() - this.batchAt < Math.max(NO_SIGNAL_MS, NO_SIGNAL_BATCHES * batchMs);
  }

  /** Whether both the description and samples have arrived. */
  get isKnown() {
    return this.info !== null && this.end >= 0;
  }

  /** Time of sample 0, ms since the Unix epoch. */
  get #startMs() {
    return this.info.start_ns / 1e6;
  }

  takeInfo(text) {
    const { fs, batch, start_ns, signal, record } = JSON.parse(text) ?? {};
    if (!isWithin(fs, 1, FS_MAX)) throw new Error("fs is out of range");
    if (!isWithin(batch, 1, BATCH_MAX)) throw new Error("batch is out of range");
    if (!isWithin(start_ns, 0, Number.MAX_VALUE)) throw new Error("start_ns is out of range");
    const known = this.info;
    this.info = { fs, batch, start_ns, signal: nameOf(signal), record: nameOf(record) };
    const length = 2 ** Math.ceil(Math.log2(fs * KEPT_S + batch * KEPT_BATCHES));
    if (known === null || known.fs !== fs || known.start_ns !== start_ns || length !== this.#samples.length) {
      this.#samples = new Float32Array(length);
      this.#kinds = new Uint8Array(length);
      this.end = -1;
      this.beats = [];
      this.changes += 1;
    }
    const pending = this.#pending;
    this.#pending = [];
    for (const { endMs, receiptMs, samples } of pending) this.take(endMs, receiptMs, samples);
  }

  /**
   * Stores a batch: the time of its last sample, the time the server received it (both ms since the Unix epoch), and the
   * samples, which are copied.
   */
  take(endMs, receiptMs, samples) {
    this.batchAt = performance.now();
    if (this.info === null) {
      this.#pending.push({ endMs, receiptMs, samples: samples.slice() });
      if (this.#pending.length > PENDING_MAX) this.#pending.shift();
      return;
    }
    this.batches += 1;
    if (this.#isImplausible(endMs - receiptMs)) return;
    const mask = this.#samples.length - 1;
    const end = Math.round(((endMs - this.#startMs) * this.info.fs) / 1e3) + 1;
    const start = end - samples.length;
    // From before this description: a restarted server sends another one.
    if (start < 0 || samples.length > mask) return;
    if (this.end >= 0 && end <= this.end - this.#samples.length) return;
    if (this.end >= 0 && start > this.end) {
      const from = Math.max(this.end, end - this.#samples.length);
      for (let at = from; at < start; at += 1) this.#kinds[at & mask] = LOST;
    }
    if (start < this.end) this.changes += 1;
    for (let at = 0; at < samples.length; at += 1) {
      const place = (start + at) & mask;
      this.#samples[place] = samples[at];
      this.#kinds[place] = Number.isNaN(samples[at]) ? NONE : SAMPLE;
    }
    this.end = Math.max(this.end, end);
  }

  /** Any client may publish: a single time far in the future must not make all later batches look too old. */
  #isImplausible(aheadMs) {
    const isImplausible = Math.abs(aheadMs - this.#ahead) > KEPT_S * 1e3;
    if (isImplausible && this.#implausibleInARow + 1 < IMPLAUSIBLE_MAX) {
      this.#implausibleInARow += 1;
      this.ignored += 1;
      return true;
    }
    this.#implausibleInARow = 0;
    this.#ahead = aheadMs;
    if (isImplausible) {
      this.#kinds.fill(NONE);
      this.end = -1;
      this.changes += 1;
    }
    return false;
  }

  takeParams(text) {
    const params = JSON.parse(text) ?? {};
    if (params.bpm !== undefined) this.bpm = isWithin(params.bpm, 0, 1_000) ? params.bpm : NaN;
    if (!Number.isSafeInteger(params.at_sample)) return null;
    this.rrMs = isWithin(params.rr_ms, 0, 1e6) ? params.rr_ms : NaN;
    this.beats.push(params.at_sample);
    if (this.beats.length > BEATS_MAX) this.beats.shift();
    return params.at_sample;
  }

  /** A sample, mV; NaN if there is none. */
  sample(at) {
    return this.#isKept(at) && this.#kinds[at & (this.#kinds.length - 1)] === SAMPLE
      ? this.#samples[at & (this.#samples.length - 1)]
      : NaN;
  }

  isLost(at) {
    return this.#isKept(at) && this.#kinds[at & (this.#kinds.length - 1)] === LOST;
  }

  #isKept(at) {
    return at >= 0 && at < this.end && at >= this.end - this.#samples.length;
  }

  /** Lowest and highest sample in `[from, to)`; `null` if there is none. */
  range(from, to) {
    let low = Infinity;
    let high = -Infinity;
    for (let at = Math.max(0, from); at < to; at += 1) {
      const sample = this.sample(at);
      if (sample < low) low = sample;
      if (sample > high) high = sample;
    }
    return low <= high ? { low, high } : null;
  }

  /** Forgets everything, after a restart of the server. */
  clear() {
    this.info = null;
    this.end = -1;
    this.beats = [];
    this.bpm = this.rrMs = NaN;
    this.#pending = [];
    this.#ahead = NaN;
    this.#implausibleInARow = 0;
    this.changes += 1;
  }
}

function isWithin(value, min, max) {
  return Number.isFinite(value) && value >= min && value <= max;
}

function nameOf(value) {
  return typeof value === "string" ? value.slice(0, NAME_CHARS_MAX) : "";
}
