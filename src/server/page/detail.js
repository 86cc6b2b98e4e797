// detail.js: the panel of an open row: its whole payload, its fields with their JSON pointers, and its recent values.

import { primaryOf } from "./columns.js";
import { PUBLISHED_MAX, formatPointer, scalarText, scalarsOf, withDigits } from "./fields.js";
import { POINTS_MAX, SAMPLE_MS, scaleOf } from "./history.js";
import { parseJson } from "./market.js";
import { bytes as sizeText, count, duration, fitCanvas } from "./stats.js";

/** Bytes of a payload that are shown, and fields that are listed. */
export const SHOWN_BYTES_MAX = 64 << 10;
const FIELDS_MAX = 100;
/** Bytes of a binary payload that are shown as hexadecimal. */
const HEX_BYTES_MAX = 4 << 10;
/** Time between two updates of the panel. */
const REDRAW_MS = 250;

const decoder = new TextDecoder();

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Bytes as rows of hexadecimal numbers and characters. */
export function hexOf(bytes) {
  const rows = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = [...bytes.subarray(at, at + 16)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = row.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    rows.push(`${at.toString(16).padStart(4, "0")}  ${hex.padEnd(47)}  ${text}`);
  }
  return rows.join("\n");
}

/** A payload as text: JSON (`isValid`) indented, other text as it is, or hexadecimal; at most about SHOWN_BYTES_MAX of it. */
export function payloadText(bytes, isJson, isValid) {
  if (!isJson) {
    const rest = bytes.length - HEX_BYTES_MAX;
    return hexOf(bytes.subarray(0, HEX_BYTES_MAX)) + (rest > 0 ? `\n… ${count(rest)} more bytes` : "");
  }
  // Not indented when long: indentation could multiply its size.
  const whole = isValid && bytes.length <= PUBLISHED_MAX ? indent(decoder.decode(bytes)) : null;
  if (whole !== null && whole.length <= SHOWN_BYTES_MAX) return whole;
  const rest = bytes.length - SHOWN_BYTES_MAX;
  return decoder.decode(bytes.subarray(0, SHOWN_BYTES_MAX)) + (rest > 0 ? `\n… ${count(rest)} more bytes` : "");
}

/** The tokens of a JSON text: strings, punctuation, and the other scalars. */
const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|[[\]{},:]|[^\s"[\]{},:]+/g;

/**
 * A valid JSON text, indented; arrays and objects without further ones, such as book levels, on one line. Changes only the
 * white space between tokens, so numbers and the order of keys are those published. `null` if nested too deeply.
 */
function indent(text) {
  const tokens = text.match(TOKENS);
  let at = 0;
  const write = (margin) => {
    if (margin.length > 64) throw new RangeError();
    const open = tokens[at++];
    if (open !== "[" && open !== "{") return open;
    const parts = [];
    let isFlat = true;
    while (tokens[at] !== "]" && tokens[at] !== "}") {
      if (tokens[at] === ",") at += 1;
      const name = open === "[" ? "" : `${tokens[at]}: `;
      if (open === "{") at += 2;
      isFlat &&= tokens[at] !== "[" && tokens[at] !== "{";
      parts.push(name + write(`${margin}  `));
    }
    const close = tokens[at++];
    if (parts.length === 0) return open + close;
    const line = parts.join(", ");
    if (margin !== "" && isFlat && parts.length <= 8 && line.length <= 72) return open + line + close;
    return `${open}\n${margin}  ${parts.join(`,\n${margin}  `)}\n${margin}${close}`;
  };
  try {
    return write("");
  } catch {
    return null;
  }
}

/** The panel. `chosen` has `isShown(pointer)` and `toggle(pointer)` for the columns of the table. */
export class Detail {
  #market;
  #chosen;
  #close;
  #colours;
  #row = null;
  /** The payload drawn, and when. */
  #payload = undefined;
  #drawnAt = -Infinity;
  #pointers = "";
  #entries = [];
  #parts;

  constructor(market, chosen, colours, close) {
    this.#market = market;
    this.#chosen = chosen;
    this.#colours = colours;
    this.#close = close;
    this.element = element("div", "detail");
    this.element.hidden = true;
    this.element.setAttribute("role", "row");
    const cell = element("div", "panel");
    cell.setAttribute("role", "gridcell");
    const parts = (this.#parts = {
      title: element("h3", "topic"),
      facts: element("p", "facts muted"),
      closing: element("button", "closing", "Close"),
      canvas: element("canvas", "curve"),
      high: element("span", "high muted"),
      middle: element("span", "middle muted"),
      low: element("span", "low muted"),
      span: element("p", "span muted"),
      fields: element("ul", "fields"),
      more: element("p", "more muted"),
      payload: element("pre", "payload"),
    });
    parts.closing.type = "button";
    parts.closing.title = "Shortcut: Escape";
    parts.closing.addEventListener("click", () => this.#close());
    parts.payload.tabIndex = 0;
    parts.payload.setAttribute("role", "region");
    parts.payload.setAttribute("aria-label", "Payload");
    parts.fields.setAttribute("aria-label", "Fields by JSON pointer; the checked ones are columns");
    parts.fields.addEventListener("change", ({ target }) => this.#chosen.toggle(target.value, this.#row));
    parts.canvas.setAttribute("role", "img");
    const top = element("div", "top");
    top.append(parts.title, parts.facts, parts.closing);
    const plot = element("div", "plot");
    plot.append(parts.high, parts.middle, parts.low, parts.canvas);
    const chart = (parts.chart = element("div", "chart"));
    chart.append(plot, parts.span);
    const list = element("div", "list");
    list.append(parts.fields, parts.more);
    cell.append(top, chart, list, parts.payload);
    this.element.append(cell);
  }

  open(row) {
    this.#row = row;
    this.#payload = undefined;
    this.#drawnAt = -Infinity;
    this.#pointers = "";
    this.#parts.title.textContent = row.name;
    this.#parts.payload.scrollTop = 0;
    this.draw(performance.now());
  }

  close() {
    this.#row = null;
    this.element.hidden = true;
  }

  /** Draws the changes; called once per frame. */
  draw(now) {
    const row = this.#row;
    if (row === null || now - this.#drawnAt < REDRAW_MS) return;
    this.#drawnAt = now;
    this.#showChart(row);
    const { payload } = row;
    this.#put("facts", factsOf(row));
    if (payload === this.#payload) return this.#showChecks();
    // What the user is copying stays.
    const selection = getSelection();
    if (!selection.isCollapsed && this.#parts.payload.contains(selection.anchorNode)) return;
    this.#payload = payload;
    const text = payload !== null && payload.isJson ? decoder.decode(payload.bytes) : "";
    const data = parseJson(text);
    const none = row.sequence === 0 ? "No tick yet." : "Too many payloads are kept; the next tick may fit.";
    this.#put("payload", payload === null ? none : payloadText(payload.bytes, payload.isJson, data !== undefined));
    this.#showFields(withDigits(text, data));
  }

  #put(name, text) {
    const part = this.#parts[name];
    if (part.textContent !== text) part.textContent = text;
  }

  #showFields(data) {
    const { fields, hasMore } = data === undefined ? { fields: [], hasMore: false } : scalarsOf(data, FIELDS_MAX);
    const pointed = fields.map(({ tokens, value }) => ({ pointer: formatPointer(tokens), value }));
    const named = pointed.filter(({ pointer }) => pointer !== "");
    const pointers = named.map(({ pointer }) => pointer).join("\n");
    if (pointers !== this.#pointers) {
      this.#pointers = pointers;
      this.#keepFocus(() => {
        this.#entries = named.map(({ pointer }) => entryOf(pointer));
        this.#parts.fields.replaceChildren(...this.#entries.map(({ item }) => item));
      });
    }
    named.forEach(({ value }, at) => {
      const text = scalarText(value);
      const { output } = this.#entries[at];
      if (output.textContent !== text) output.textContent = text;
    });
    this.#put("more", named.length === 0 ? "No fields." : hasMore ? `The first ${FIELDS_MAX} fields.` : "");
    this.#showChecks();
  }

  /** A delta has other fields with each tick: the one with the focus keeps it, if it is still there. */
  #keepFocus(change) {
    const focused = this.#parts.fields.contains(document.activeElement) ? document.activeElement.value : null;
    change();
    if (focused === null) return;
    const same = this.#entries.find(({ box }) => box.value === focused);
    (same?.box ?? this.#parts.closing).focus({ preventScroll: true });
  }

  #showChecks() {
    for (const { box } of this.#entries) {
      const isShown = this.#chosen.isShown(box.value, this.#row);
      if (box.checked !== isShown) box.checked = isShown;
    }
  }

  #showChart(row) {
    const values = row.history.values();
    const scale = scaleOf(values);
    const { label } = row.charted ?? primaryOf(this.#market.columns);
    const seconds = Math.round((values.length * SAMPLE_MS) / 1e3);
    this.#put("span", scale === null ? `No numbers in the column ${label}` : `${label} over ${duration(seconds * 1e3)}`);
    this.#parts.chart.classList.toggle("empty", scale === null);
    const tick = (value) => (scale === null ? "" : value.toFixed(scale.decimals).replace("-", "−"));
    this.#put("high", tick(scale?.high));
    this.#put("low", tick(scale?.low));
    this.#put("middle", tick(scale === null ? 0 : (scale.low + scale.high) / 2));
    const known = values.filter(Number.isFinite);
    const now = scale === null ? "no numbers yet" : `between ${tick(Math.min(...known))} and ${tick(Math.max(...known))}`;
    this.#parts.canvas.setAttribute("aria-label", `${label} of ${row.name}: ${now}`);
    drawCurve(this.#parts.canvas, values, scale, this.#colours());
  }
}

function entryOf(pointer) {
  const item = document.createElement("li");
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.value = pointer;
  const name = element("code", "pointer", pointer);
  name.title = pointer;
  const output = element("span", "output");
  label.append(box, name, output);
  item.append(label);
  return { item, box, output };
}

function factsOf({ payload, isDelta, sequence, conflated }) {
  if (payload === null) return "";
  const time = new Date(payload.producerMs);
  const at = Number.isNaN(time.getTime()) ? "" : `published ${time.toISOString().slice(11, 23)} UTC`;
  const delta = conflated > 0 ? `delta, and ${count(conflated)} others were conflated` : "delta";
  const kind = isDelta ? delta : payload.isJson ? "JSON" : "binary";
  return [kind, sizeText(payload.bytes.length), `sequence ${count(sequence)}`, at].filter((part) => part !== "").join(" · ");
}

/** A step line, with lines at the top, the middle and the bottom of the scale. */
function drawCurve(canvas, values, scale, { line, area, rule }) {
  const fitted = fitCanvas(canvas);
  if (fitted === null) return;
  const { context, width, height, ratio } = fitted;
  context.clearRect(0, 0, width, height);
  const inner = height - 2 * ratio;
  context.fillStyle = rule;
  for (const part of [0, 0.5, 1]) context.fillRect(0, ratio * 0.5 + part * inner, width, ratio);
  if (scale === null) return;
  // At least a quarter of the span, so that the first values are not stretched over all of it.
  const points = Math.max(POINTS_MAX / 4, values.length);
  const x = (at) => ((at + points - values.length) / (points - 1)) * width;
  const y = (value) => ratio + (1 - (value - scale.low) / (scale.high - scale.low)) * inner;
  context.lineWidth = 1.5 * ratio;
  context.lineJoin = "round";
  context.strokeStyle = line;
  context.fillStyle = area;
  let from = -1;
  for (let at = 0; at <= values.length; at += 1) {
    const isKnown = at < values.length && Number.isFinite(values[at]);
    if (isKnown && from < 0) from = at;
    if (isKnown || from < 0) continue;
    context.beginPath();
    for (let point = from; point < at; point += 1) {
      if (point > from) context.lineTo(x(point), y(values[point - 1]));
      context.lineTo(x(point), y(values[point]));
    }
    context.stroke();
    context.lineTo(x(at - 1), height);
    context.lineTo(x(from), height);
    context.fill();
    from = -1;
  }
}
