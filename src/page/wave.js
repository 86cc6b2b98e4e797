// wave.js: the samples of `ecg.wave` in a ring, by their numbers since the start of the record. What did not come is known
// as lost, not left out.

/** Seconds of samples that are kept. */
const KEPT_S = 20;
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
  bpm = NaN;
  rrMs = NaN;
  /** Counts what makes a drawing wrong: other samples than were drawn. */
  changes = 0;
  #samples = new Float32Array(0);
  #kinds = new Uint8Array(0);
  #waiting = [];

  /** Whether anything of a heart has come. */
  get isKnown() {
    return this.info !== null && this.end >= 0;
  }

  /** The time of sample 0, ms since 1970. */
  get #startMs() {
    return this.info.start_ns / 1e6;
  }

  takeInfo(text) {
    const info = JSON.parse(text);
    if (!(info.fs >= 1 && info.fs <= 100_000)) throw new Error(`${info.fs} samples a second`);
    if (!(info.batch >= 1 && info.batch <= info.fs * KEPT_S)) throw new Error(`${info.batch} samples in a batch`);
    if (!Number.isFinite(info.start_ns)) throw new Error("no start_ns");
    const known = this.info;
    this.info = info;
    if (known === null || known.fs !== info.fs || known.start_ns !== info.start_ns) {
      const length = 2 ** Math.ceil(Math.log2(info.fs * KEPT_S));
      this.#samples = new Float32Array(length);
      this.#kinds = new Uint8Array(length);
      this.end = -1;
      this.beats = [];
      this.changes += 1;
    }
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { endMs, samples } of waiting) this.take(endMs, samples);
  }

  /** A batch: the time of its last sample, ms since 1970, and the samples, which are only borrowed. */
  take(endMs, samples) {
    if (this.info === null) {
      this.#waiting.push({ endMs, samples: samples.slice() });
      if (this.#waiting.length > WAITING_MAX) this.#waiting.shift();
      return;
    }
    this.batches += 1;
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

  takeParams(text) {
    const params = JSON.parse(text);
    if ("bpm" in params) this.bpm = params.bpm ?? NaN;
    if (!Number.isInteger(params.at_sample)) return null;
    this.rrMs = params.rr_ms ?? NaN;
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
    this.changes += 1;
  }
}
