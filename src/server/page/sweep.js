// sweep.js: a Wave as a monitor shows it: the trace is written from left to right over the one before, behind a bar that
// erases it. Only what is new is drawn, once a frame.

/** A square of the grid: 0.2 s; five small ones, as on paper at 25 mm/s. */
const SQUARE_S = 0.2;
const MM_PER_SQUARE = 5;
/** Width of the erased bar, seconds. */
const BAR_S = 0.28;
/** Heights of a millivolt, mm, that are tried from the largest on. */
const GAINS_MM = [40, 20, 10, 5, 2.5];
/** Share of the height that the wave may take. */
const FILL = 0.82;
/** The trace is so far behind the newest sample at least: batches come in one piece, and not on the dot. */
const DELAY_S = 0.12;
/** How fast that distance is kept: share of the error a second. */
const PULL = 1.5;
/** Farther off than this, or than so many batches, the trace jumps. */
const JUMP_S = 0.75;
const JUMP_BATCHES = 2;
/** The trace is so many batches behind the newest sample, just after that has come. */
const DELAY_BATCHES = 2.5;
/** Where motion is not wanted, the trace goes on in steps of so long. */
const STEP_MS = 1_000;

export class Sweep {
  /** Frames drawn since somebody asked. */
  frames = 0;
  #wave;
  #grid;
  #canvas;
  #context;
  #colours;
  #still;
  #width = 0;
  #height = 0;
  #ratio = 1;
  #seconds = 8;
  /** Where the trace is, in samples, with their fractions. */
  #cursor = -1;
  /** Samples before this are drawn. */
  #drawn = -1;
  #changes = -1;
  #gain = 10;
  #centre = 0.25;
  #beatDrawn = -1;
  #stale = true;
  #at = 0;
  #judged = 0;

  constructor(grid, canvas, wave, colours) {
    this.#wave = wave;
    this.#grid = grid;
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#colours = colours;
    this.#still = matchMedia("(prefers-reduced-motion: reduce)");
    new ResizeObserver(() => (this.#stale = true)).observe(canvas);
  }

  /** Colours or the size of a pixel are others. */
  redraw() {
    this.#stale = true;
  }

  /** What a square of the grid stands for. */
  get scale() {
    return `One square is ${SQUARE_S} s and ${MM_PER_SQUARE / this.#gain} mV`;
  }

  /** Draws up to now (`performance.now()`). */
  draw(now) {
    const wave = this.#wave;
    const elapsed = now - this.#at;
    if (this.#still.matches && elapsed < STEP_MS && !this.#stale) return;
    this.#at = now;
    if (this.#stale) this.#layout();
    if (this.#width === 0) return;
    if (!wave.isKnown) {
      if (this.#drawn !== -1) this.#clear();
      return;
    }
    this.frames += 1;
    const { fs } = wave.info;
    this.#advance(now, elapsed / 1e3, fs);
    const to = Math.floor(this.#cursor);
    this.#judge(now, to, fs);
    if (this.#changes !== wave.changes) {
      this.#changes = wave.changes;
      this.#stale = true;
    }
    const shown = Math.floor((this.#seconds - BAR_S) * fs);
    if (this.#stale || this.#drawn < to - shown) {
      this.#stale = false;
      this.#context.clearRect(0, 0, this.#width, this.#height);
      this.#span(Math.max(0, to - shown), to, fs);
      this.#beatDrawn = -1;
    } else if (to > this.#drawn) {
      this.#erase(this.#drawn, to, fs);
      this.#span(this.#drawn, to, fs);
    }
    this.#drawn = to;
    this.#beats(to - shown, to, fs);
  }

  /** Moves the trace on evenly, though samples come in batches. */
  #advance(now, elapsedS, fs) {
    const { end, info, batchAt } = this.#wave;
    const delay = Math.max(DELAY_S * fs, DELAY_BATCHES * info.batch);
    // Between two batches the wave goes on, though nobody has seen it yet.
    const since = Math.min(Math.max(0, ((now - batchAt) / 1e3) * fs), info.batch);
    const target = end - 1 - delay + since;
    const wanted = this.#cursor + elapsedS * fs;
    const error = target - wanted;
    const jump = Math.max(JUMP_S * fs, JUMP_BATCHES * info.batch);
    if (this.#cursor < 0 || Math.abs(error) > jump || this.#cursor > end) this.#cursor = target;
    else this.#cursor = Math.min(end - 1, wanted + error * Math.min(1, PULL * elapsedS));
    this.#cursor = Math.max(0, this.#cursor);
    if (this.#still.matches) this.#cursor = Math.max(0, target);
    if (this.#cursor < this.#drawn) this.#cursor = Math.min(this.#drawn, end - 1);
  }

  /** Once a second: whether the wave still fits the height. */
  #judge(now, to, fs) {
    if (now - this.#judged < 1_000 && this.#drawn >= 0) return;
    this.#judged = now;
    const range = this.#wave.range(Math.floor(to - this.#seconds * fs), to);
    if (range === null) return;
    const millimetre = this.#millimetre();
    const fits = (gain, share) => (range.high - range.low) * gain * millimetre <= share * this.#height;
    const best = GAINS_MM.find((gain) => fits(gain, FILL)) ?? GAINS_MM.at(-1);
    // A larger one only where there is room to spare, lest it change with every beat.
    const isLarger = best > this.#gain && fits(best, 0.8 * FILL);
    const gain = best < this.#gain || isLarger ? best : this.#gain;
    const middle = (range.high + range.low) / 2;
    const off = Math.abs(middle - this.#centre) * gain * millimetre;
    if (gain === this.#gain && off < 0.08 * this.#height) return;
    this.#gain = gain;
    this.#centre = Math.round(middle * 10) / 10;
    this.#stale = true;
  }

  #layout() {
    const ratio = devicePixelRatio || 1;
    const width = Math.round(this.#canvas.clientWidth * ratio);
    const height = Math.round(this.#canvas.clientHeight * ratio);
    this.#ratio = ratio;
    this.#width = width;
    this.#height = height;
    for (const canvas of [this.#grid, this.#canvas]) {
      if (canvas.width !== width) canvas.width = width;
      if (canvas.height !== height) canvas.height = height;
    }
    if (width === 0) return;
    this.#seconds = Math.min(12, Math.max(3, Math.round(this.#canvas.clientWidth / 110)));
    this.#rule();
  }

  /** Pixels of a millimetre on paper. */
  #millimetre() {
    return (this.#width / this.#seconds) * (SQUARE_S / MM_PER_SQUARE);
  }

  #rule() {
    const context = this.#grid.getContext("2d");
    const { fine, coarse } = this.#colours();
    const millimetre = this.#millimetre();
    const middle = Math.round(this.#height / 2);
    context.clearRect(0, 0, this.#width, this.#height);
    const line = (isAcross, at, isCoarse) => {
      context.fillStyle = isCoarse ? coarse : fine;
      const thick = Math.max(1, Math.round(this.#ratio * 0.75));
      if (isAcross) context.fillRect(0, at, this.#width, thick);
      else context.fillRect(at, 0, thick, this.#height);
    };
    for (const isCoarse of [false, true]) {
      // Small squares of less than three pixels would be a grey area.
      if (!isCoarse && millimetre < 3 * this.#ratio) continue;
      const step = isCoarse ? MM_PER_SQUARE : 1;
      for (let n = 0; n * millimetre <= this.#width; n += step) line(false, Math.round(n * millimetre), isCoarse);
      for (let n = 0; n * millimetre <= middle; n += step) {
        line(true, middle - Math.round(n * millimetre), isCoarse);
        line(true, middle + Math.round(n * millimetre), isCoarse);
      }
    }
  }

  #clear() {
    this.#context.clearRect(0, 0, this.#width, this.#height);
    this.#cursor = this.#drawn = this.#beatDrawn = -1;
    this.#stale = true;
  }

  #x(at, fs) {
    return (((at / fs) % this.#seconds) / this.#seconds) * this.#width;
  }

  #y(mv) {
    return this.#height / 2 - (mv - this.#centre) * this.#gain * this.#millimetre();
  }

  /** The bar goes on from where it was, as far as the trace does. */
  #erase(from, to, fs) {
    const bar = BAR_S * fs;
    const start = Math.floor(this.#x(from + bar, fs));
    const end = Math.ceil(this.#x(to + bar, fs)) + 1;
    if (end >= start) return this.#context.clearRect(start, 0, end - start, this.#height);
    this.#context.clearRect(start, 0, this.#width - start, this.#height);
    this.#context.clearRect(0, 0, end, this.#height);
  }

  /** The trace from a sample to another; nothing is drawn where there is none, and a tint where it is lost. */
  #span(from, to, fs) {
    const context = this.#context;
    const wave = this.#wave;
    const { trace, lost } = this.#colours();
    const step = this.#width / (this.#seconds * fs);
    context.fillStyle = lost;
    for (let at = from + 1; at <= to; at += 1) {
      if (!wave.isLost(at)) continue;
      const first = at;
      while (at < to && wave.isLost(at + 1) && this.#x(at + 1, fs) > this.#x(at, fs)) at += 1;
      const x = this.#x(first, fs) - step;
      context.fillRect(x, 0, this.#x(at, fs) - x + step, this.#height);
    }
    context.strokeStyle = trace;
    context.lineWidth = 1.75 * this.#ratio;
    context.lineJoin = context.lineCap = "round";
    context.beginPath();
    let isDown = false;
    let before = Infinity;
    for (let at = from; at <= to; at += 1) {
      const sample = wave.sample(at);
      const x = this.#x(at, fs);
      if (Number.isNaN(sample)) {
        isDown = false;
      } else if (!isDown) {
        context.moveTo(x, this.#y(sample));
        isDown = true;
      } else if (x < before) {
        // Over the right edge: out there, and in again on the left.
        context.lineTo(x + this.#width, this.#y(sample));
        context.moveTo(this.#x(at - 1, fs) - this.#width, this.#y(wave.sample(at - 1)));
        context.lineTo(x, this.#y(sample));
      } else {
        context.lineTo(x, this.#y(sample));
      }
      before = x;
    }
    context.stroke();
  }

  /** A mark over each beat, which is known only after the trace has gone by. */
  #beats(from, to, fs) {
    const { beat } = this.#colours();
    const half = 3.5 * this.#ratio;
    this.#context.fillStyle = beat;
    let newest = this.#beatDrawn;
    for (const at of this.#wave.beats) {
      if (at <= this.#beatDrawn || at < from || at > to) continue;
      const x = this.#x(at, fs);
      this.#context.beginPath();
      this.#context.moveTo(x - half, 2 * this.#ratio);
      this.#context.lineTo(x + half, 2 * this.#ratio);
      this.#context.lineTo(x, 2 * this.#ratio + 1.6 * half);
      this.#context.fill();
      newest = Math.max(newest, at);
    }
    this.#beatDrawn = newest;
  }
}
