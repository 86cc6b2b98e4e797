// wave.js: the samples of `ecg.wave` in a ring, by their numbers since the start of the record. What did not come is known
// as lost, not left out.

/** Seconds of samples that are kept, beside those of batches that the trace is behind. */
const KEPT_S = 20;
/** Batches that the trace may be behind, and the one that comes. */
const KEPT_BATCHES = 3.5;
/** Samples of a second, and of a batch: the largest frame has no more. */
const FS_MAX = 100_000;
const BATCH_MAX = 65_536;
/** Of the names that a description gives. */
const NAME_MAX = 64;
/** Without a batch for so long, or for so many batches, there is no wave. */
const FLAT_MS = 1_500;
const FLAT_BATCHES = 3;
/** So many batches in a row whose times are strange are right, and what was before was strange. */
const STRANGE_MAX = 8;
/** Batches that are kept until the description of the wave has come. */
const WAITING_MAX = 512;
const BEATS_MAX = 64;

const NONE = 0;
const SAMPLE = 1;
const LOST = 2;

export class Wave {
  /** The payload of `ecg.info`; `null` before the first. */
  info = null;
  /** The number after the newest sample's; -1: none has come. */
  end = -1;
  batches = 0;
  /** Batches that the server said are lost, or that are missing. */
  lost = 0;
  /** Beats by the number of their sample, newest last. */
  beats = [];
  /** Batches that were not taken, as their time is not that of the others. */
  strange = 0;
  /** `performance.now()` at the newest batch; 0: none has come. */
  batchAt = 0;
  bpm = NaN;
  rrMs = NaN;
  /** Counts what makes a drawing wrong: other samples than were drawn. */
  changes = 0;
  #samples = new Float32Array(0);
  #kinds = new Uint8Array(0);
  #waiting = [];
  /** The producer's time less the server's, ms, of the batch before. */
  #ahead = NaN;
  #strangeInARow = 0;

  /** Whether batches come. */
  get isFlowing() {
    const batchMs = this.info === null ? 0 : (1e3 * this.info.batch) / this.info.fs;
    return this.batchAt !== 0 && performance.now() - this.batchAt < Math.max(FLAT_MS, FLAT_BATCHES * batchMs);
  }

  /** Whether anything of a heart has come. */
  get isKnown() {
    return this.info !== null && this.end >= 0;
  }

  /** The time of sample 0, ms since 1970. */
  get #startMs() {
    return this.info.start_ns / 1e6;
  }

  takeInfo(text) {
    const { fs, batch, start_ns, signal, record } = JSON.parse(text) ?? {};
    if (!isWithin(fs, 1, FS_MAX)) throw new Error("no fs that can be");
    if (!isWithin(batch, 1, BATCH_MAX)) throw new Error("no batch that can be");
    if (!isWithin(start_ns, 0, Number.MAX_VALUE)) throw new Error("no start_ns that can be");
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
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { endMs, receiptMs, samples } of waiting) this.take(endMs, receiptMs, samples);
  }

  /**
   * A batch: the time of its last sample and of the server's receipt, ms since 1970, and the samples, which are only
   * borrowed.
   */
  take(endMs, receiptMs, samples) {
    this.batchAt = performance.now();
    if (this.info === null) {
      this.#waiting.push({ endMs, receiptMs, samples: samples.slice() });
      if (this.#waiting.length > WAITING_MAX) this.#waiting.shift();
      return;
    }
    this.batches += 1;
    if (this.#isStrange(endMs - receiptMs)) return;
    const mask = this.#samples.length - 1;
    const end = Math.round(((endMs - this.#startMs) * this.info.fs) / 1e3) + 1;
    const start = end - samples.length;
    // Of another start of the server: its description is on its way.
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

  /** Anyone may publish: one time far ahead is not to make all others too old. */
  #isStrange(aheadMs) {
    const isStrange = Math.abs(aheadMs - this.#ahead) > KEPT_S * 1e3;
    if (isStrange && this.#strangeInARow + 1 < STRANGE_MAX) {
      this.#strangeInARow += 1;
      this.strange += 1;
      return true;
    }
    this.#strangeInARow = 0;
    this.#ahead = aheadMs;
    if (isStrange) {
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

  /** The sample in mV; NaN where there is none. */
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

  /** The lowest and the highest sample of `[from, to)`; `null` where there is none. */
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

  /** The server was started anew: its samples are others. */
  clear() {
    this.info = null;
    this.end = -1;
    this.beats = [];
    this.bpm = this.rrMs = NaN;
    this.#waiting = [];
    this.#ahead = NaN;
    this.#strangeInARow = 0;
    this.changes += 1;
  }
}

function isWithin(value, least, most) {
  return Number.isFinite(value) && value >= least && value <= most;
}

function nameOf(value) {
  return typeof value === "string" ? value.slice(0, NAME_MAX) : "";
}
