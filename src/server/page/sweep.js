// sweep.js: draws a Wave like a patient monitor. The trace sweeps from left to right and overwrites the previous sweep
// behind an erase bar. Each frame draws only what is new.

import { byId, setText } from "./dom.js";
import { count, many } from "./stats.js";

/** A large square of the grid: 0.2 s, or five small squares of 1 mm, as on ECG paper at 25 mm/s. */
const SQUARE_S = 0.2;
const MM_PER_SQUARE = 5;
/** Width of the erase bar, seconds. */
const BAR_S = 0.28;
/** Gains to choose from, mm/mV, largest first. */
const GAINS_MM_PER_MV = [40, 20, 10, 5, 2.5];
/** Fraction of the height that the wave may fill. */
const FILL = 0.82;
/** Minimum delay of the trace behind the newest sample, in seconds and in batches. It hides the jitter between batches. */
const DELAY_S = 0.12;
const DELAY_BATCHES = 2.5;
/** Speed at which the trace corrects its delay: fraction of the error per second. */
const CORRECTION_PER_S = 1.5;
/** An error larger than both of these makes the trace jump. */
const JUMP_S = 0.75;
const JUMP_BATCHES = 2;
/** Interval between updates with reduced motion. */
const STEP_MS = 1_000;

export class Sweep {
  /** Frames drawn since the caller last reset this. */
  frames = 0;
  #wave;
  #grid;
  #canvas;
  #context;
  #colours;
  #reducedMotion;
  #width = 0;
  #height = 0;
  #ratio = 1;
  #seconds = 8;
  /** Position of the trace, as a fractional sample number. */
  #cursor = -1;
  /** The last sample drawn. */
  #drawn = -1;
  #changes = -1;
  #gain = 10;
  #centre = 0.25;
  #beatDrawn = -1;
  #stale = true;
  #drawnAt = 0;
  #gainCheckedAt = 0;

  constructor(grid, canvas, wave, colours) {
    this.#wave = wave;
    this.#grid = grid;
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#colours = colours;
    this.#reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
    new ResizeObserver(() => (this.#stale = true)).observe(canvas);
  }

  /** Redraws everything in the next frame, after a change of colours or pixel ratio. */
  redraw() {
    this.#stale = true;
  }

  /** Scale of the grid, as text. */
  get scale() {
    return `Grid: ${SQUARE_S} s × ${MM_PER_SQUARE / this.#gain} mV`;
  }

  /** Draws the trace up to `now`, a time of `performance.now()`. */
  draw(now) {
    const wave = this.#wave;
    const elapsed = now - this.#drawnAt;
    if (this.#reducedMotion.matches && elapsed < STEP_MS && !this.#stale) return;
    this.#drawnAt = now;
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
    this.#adjustGain(now, to, fs);
    if (this.#changes !== wave.changes) {
      this.#changes = wave.changes;
      this.#stale = true;
    }
    const shown = Math.floor((this.#seconds - BAR_S) * fs);
    if (this.#stale || this.#drawn < to - shown) {
      this.#stale = false;
      this.#context.clearRect(0, 0, this.#width, this.#height);
      this.#drawTrace(Math.max(0, to - shown), to, fs);
      this.#beatDrawn = -1;
    } else if (to > this.#drawn) {
      this.#erase(this.#drawn, to, fs);
      this.#drawTrace(this.#drawn, to, fs);
    }
    this.#drawn = to;
    this.#drawBeats(to - shown, to, fs);
  }

  /** Advances the trace at an even speed, although samples arrive in batches. */
  #advance(now, elapsedS, fs) {
    const { end, info, batchAt } = this.#wave;
    const delay = Math.max(DELAY_S * fs, DELAY_BATCHES * info.batch);
    // Estimated number of samples recorded since the newest batch arrived.
    const since = Math.min(Math.max(0, ((now - batchAt) / 1e3) * fs), info.batch);
    const target = end - 1 - delay + since;
    const uncorrected = this.#cursor + elapsedS * fs;
    const error = target - uncorrected;
    const jump = Math.max(JUMP_S * fs, JUMP_BATCHES * info.batch);
    if (this.#cursor < 0 || Math.abs(error) > jump || this.#cursor > end) this.#cursor = target;
    else this.#cursor = Math.min(end - 1, uncorrected + error * Math.min(1, CORRECTION_PER_S * elapsedS));
    this.#cursor = Math.max(0, this.#cursor);
    if (this.#reducedMotion.matches) this.#cursor = Math.max(0, target);
    if (this.#cursor < this.#drawn) this.#cursor = Math.min(this.#drawn, end - 1);
  }

  /** Adapts gain and centre to the wave, at most once per second. */
  #adjustGain(now, to, fs) {
    if (now - this.#gainCheckedAt < 1_000 && this.#drawn >= 0) return;
    this.#gainCheckedAt = now;
    const range = this.#wave.range(Math.floor(to - this.#seconds * fs), to);
    if (range === null) return;
    const millimetre = this.#millimetre();
    const fits = (gain, fill) => (range.high - range.low) * gain * millimetre <= fill * this.#height;
    const best = GAINS_MM_PER_MV.find((gain) => fits(gain, FILL)) ?? GAINS_MM_PER_MV.at(-1);
    // Increase the gain only with room to spare, so that it does not change with every beat.
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
    this.#drawGrid();
  }

  /** Pixels per millimetre of ECG paper. */
  #millimetre() {
    return (this.#width / this.#seconds) * (SQUARE_S / MM_PER_SQUARE);
  }

  #drawGrid() {
    const context = this.#grid.getContext("2d");
    const { fine, coarse } = this.#colours();
    const millimetre = this.#millimetre();
    const middle = Math.round(this.#height / 2);
    context.clearRect(0, 0, this.#width, this.#height);
    const line = (isHorizontal, at, isCoarse) => {
      context.fillStyle = isCoarse ? coarse : fine;
      const thickness = Math.max(1, Math.round(this.#ratio * 0.75));
      if (isHorizontal) context.fillRect(0, at, this.#width, thickness);
      else context.fillRect(at, 0, thickness, this.#height);
    };
    for (const isCoarse of [false, true]) {
      // Squares smaller than three CSS pixels would merge into grey.
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

  /** Moves the erase bar forward by as much as the trace. */
  #erase(from, to, fs) {
    const bar = BAR_S * fs;
    const start = Math.floor(this.#x(from + bar, fs));
    const end = Math.ceil(this.#x(to + bar, fs)) + 1;
    if (end >= start) return this.#context.clearRect(start, 0, end - start, this.#height);
    this.#context.clearRect(start, 0, this.#width - start, this.#height);
    this.#context.clearRect(0, 0, end, this.#height);
  }

  /** Draws the trace between two samples. Lost samples are tinted; missing ones stay empty. */
  #drawTrace(from, to, fs) {
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
    let isPenDown = false;
    let previousX = Infinity;
    for (let at = from; at <= to; at += 1) {
      const sample = wave.sample(at);
      const x = this.#x(at, fs);
      if (Number.isNaN(sample)) {
        isPenDown = false;
      } else if (!isPenDown) {
        context.moveTo(x, this.#y(sample));
        isPenDown = true;
      } else if (x < previousX) {
        // Wrap around: leave at the right edge and enter again at the left.
        context.lineTo(x + this.#width, this.#y(sample));
        context.moveTo(this.#x(at - 1, fs) - this.#width, this.#y(wave.sample(at - 1)));
        context.lineTo(x, this.#y(sample));
      } else {
        context.lineTo(x, this.#y(sample));
      }
      previousX = x;
    }
    context.stroke();
  }

  /** Draws a marker above each beat. Beats are detected after the trace has passed them. */
  #drawBeats(from, to, fs) {
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

/** Shows the texts of the ECG's card, once a second. */
export function showEcg({ wave, sweep, seconds, state, isSuspended }) {
  byId("ecg").hidden = !wave.isKnown && wave.batches === 0;
  if (byId("ecg").hidden) return;
  const { info } = wave;
  if (info !== null) setText("lead", `${info.signal}${info.record === info.signal ? "" : `, record ${info.record}`}, ${info.fs} Hz`);
  byId("pulse").dataset.known = wave.beats.length > 0 || !Number.isNaN(wave.bpm) ? "yes" : "no";
  setText("bpm", Number.isNaN(wave.bpm) ? "–" : String(Math.round(wave.bpm)));
  setText("scale", sweep.scale);
  const hint = "To detect beats, run: tickcast process ecg";
  setText("beat", wave.beats.length === 0 ? hint : Number.isNaN(wave.rrMs) ? "" : `RR ${Math.round(wave.rrMs)} ms`);
  const ignored = wave.ignored === 0 ? "" : `, ${count(wave.ignored)} ignored (implausible time)`;
  setText("batches", (wave.lost === 0 ? "No batches lost" : `${many(wave.lost, "batch", "batches")} lost`) + ignored);
  const hasNoSignal = !wave.isFlowing;
  byId("no-signal").hidden = !hasNoSignal;
  setText("no-signal", isSuspended ? "Paused" : state === "live" ? "No signal" : "Disconnected");
  const fps = Math.round(sweep.frames / seconds);
  document.body.dataset.fps = hasNoSignal ? 0 : fps;
  setText("frames", hasNoSignal ? "" : `${fps} fps`);
}
