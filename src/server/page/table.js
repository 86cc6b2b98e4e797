// table.js: the table of a Market. Only visible rows have elements, so the cost does not grow with the number of topics. One
// row can be open: below it is a panel, as high as an even number of rows so that the stripes go on after it.

import { primaryOf } from "./columns.js";
import { count, rate } from "./stats.js";

/** Extra rows rendered above and below the visible ones. */
const OVERSCAN = 4;
const FLASH_MS = 700;
/** A value that changes sooner than this after its last flash does not flash anew: each costs as much as drawing the row. */
const FLASH_AGAIN_MS = 150;
/** More decimals than this are not aligned. */
const DECIMALS_MAX = 10;

const COUNTERS = [
  { name: "change", label: "Change", title: "" },
  { name: "rate", label: "Ticks/s", title: "Published ticks per second, including conflated ones" },
  { name: "sequence", label: "Sequence", title: "" },
  { name: "conflated", label: "Conflated", title: "Ticks replaced by a newer one before delivery" },
  { name: "gaps", label: "Lost", title: "Ticks the server announced as lost" },
];

/** Row elements created so far, to give each a unique id. */
let lines = 0;

function span(className, role) {
  const element = document.createElement("span");
  element.className = className;
  if (role !== undefined) element.setAttribute("role", role);
  return element;
}

/** A cell of a field: its number in two parts, so that the decimal points of a column are below each other. */
class FieldCell {
  #text = "";
  #title = "";
  #isOld = false;

  constructor(className, at) {
    this.element = span(className, "gridcell");
    this.element.style.setProperty("--decimals", `var(--decimals-${at})`);
    this.box = span("number");
    this.whole = span("whole");
    this.fraction = span("fraction");
    this.box.append(this.whole, this.fraction);
    this.element.append(this.box);
  }

  /** Shows a field. Returns the number of its decimals. */
  show(field, empty) {
    const { text, title, isOld, value } = field ?? { text: empty, title: "", isOld: false, value: NaN };
    const dot = Number.isNaN(value) ? -1 : text.indexOf(".");
    if (this.#text !== text) {
      this.#text = text;
      this.whole.textContent = dot < 0 ? text : text.slice(0, dot);
      this.fraction.textContent = dot < 0 ? "" : text.slice(dot);
      // In two parts, a number would be read out as two.
      this.element.ariaLabel = text === "" ? null : text;
      this.box.classList.toggle("aligned", !Number.isNaN(value));
    }
    const hint = isOld ? "from an earlier tick: the last one, a delta, does not have it" : title;
    if (this.#title !== hint) this.element.title = this.#title = hint;
    if (this.#isOld !== isOld) this.element.classList.toggle("old", (this.#isOld = isOld));
    return dot < 0 ? 0 : text.length - dot - 1;
  }
}

/** A row element, reused for whichever row it currently shows. */
class Line {
  row = null;
  index = -1;
  top = -1;
  cells = {};
  #flashedAt = 0;
  #texts = {};
  #columns = [];
  #fields = [];

  constructor(columns) {
    this.element = document.createElement("div");
    this.element.className = "row";
    this.element.id = `row-${(lines += 1)}`;
    this.element.setAttribute("role", "row");
    this.setColumns(columns);
  }

  /** Makes the cells anew. */
  setColumns(columns) {
    this.#columns = columns;
    this.#texts = {};
    this.cells = { name: span("name", "rowheader"), summary: span("summary", "gridcell") };
    this.prefix = span("prefix");
    this.symbol = document.createElement("b");
    this.chip = span("chip");
    this.line = span("line");
    this.cells.name.append(this.prefix, this.symbol, this.chip);
    this.cells.summary.append(this.line);
    this.cells.summary.setAttribute("aria-colspan", columns.length);
    const names = classesOf(columns);
    this.#fields = columns.map((_, at) => new FieldCell(names[at], at));
    this.primary = this.#fields[columns.indexOf(primaryOf(columns))];
    for (const { name } of COUNTERS) this.cells[name] = span(name, "gridcell");
    const { name, summary, ...counters } = this.cells;
    this.element.replaceChildren(name, summary, ...this.#fields.map(({ element }) => element), ...Object.values(counters));
    this.row = null;
    this.index = -1;
  }

  /** Shows a row. `widen(at, decimals)` learns the decimals of each field. */
  show(row, market, index, top, flashes, widen) {
    const isSame = this.row === row;
    if (isSame && !row.dirty && this.index === index && this.top === top) return;
    if (!isSame) {
      this.row = row;
      this.flash?.cancel();
      this.prefix.textContent = row.prefix;
      this.symbol.textContent = row.symbol;
      this.cells.name.title = row.name;
    }
    if (this.index !== index) this.element.setAttribute("aria-rowindex", index + 2);
    if (this.top !== top) this.element.style.transform = `translateY(${top}px)`;
    this.index = index;
    this.top = top;
    const { key } = primaryOf(this.#columns);
    const textBefore = row.shownText;
    const before = row.shownValue;
    row.parse(market);
    row.dirty = false;
    row.isDrawn = true;
    const hasSummary = row.summary !== "";
    this.element.classList.toggle("summarized", hasSummary);
    if (this.line.textContent !== row.summary) this.line.textContent = this.cells.summary.title = row.summary;
    this.#columns.forEach((column, at) => {
      const empty = row.sequence === 0 && column.key === key ? "–" : "";
      const decimals = this.#fields[at].show(hasSummary ? undefined : row.fields.get(column.key), empty);
      if (decimals > 0) widen(at, Math.min(decimals, DECIMALS_MAX));
    });
    this.#put("change", row.changeText);
    this.#put("rate", rate(row.rate));
    this.#put("sequence", row.sequence === 0 ? "–" : count(row.sequence));
    this.#put("conflated", count(row.conflated));
    this.#put("gaps", count(row.gaps));
    this.#showDelta(row, hasSummary);
    this.cells.change.title = row.changeTitle;
    const { classList } = this.cells.change;
    classList.toggle("up", row.changeText.startsWith("+"));
    classList.toggle("down", row.changeText.startsWith("−"));
    this.cells.gaps.classList.toggle("nonzero", row.gaps > 0);
    row.shownText = row.fields.get(key)?.text;
    row.shownValue = row.value;
    const hasChanged = textBefore !== undefined && textBefore !== row.shownText && !hasSummary;
    if (isSame && flashes && hasChanged) this.#flash(row.value - before);
  }

  /** The mark of a delta: before the summary, else beside the name. */
  #showDelta(row, hasSummary) {
    const place = hasSummary ? this.cells.summary : this.cells.name;
    if (this.chip.parentElement !== place) hasSummary ? place.prepend(this.chip) : place.append(this.chip);
    const isBroken = row.isDelta && row.conflated > 0;
    const text = row.isDelta ? "delta" : "";
    if (this.chip.textContent !== text) this.chip.textContent = text;
    this.chip.classList.toggle("broken", isBroken);
    this.cells.conflated.classList.toggle("broken", isBroken);
    const missing = `${count(row.conflated)} deltas were conflated: what they changed is missing here`;
    this.chip.title = isBroken ? missing : "the last payload says what changed, not what is";
  }

  #put(name, text) {
    if (this.#texts[name] !== text) {
      this.#texts[name] = text;
      this.cells[name].textContent = text;
    }
  }

  #flash(change) {
    const now = performance.now();
    if (now - this.#flashedAt < FLASH_AGAIN_MS) return;
    this.#flashedAt = now;
    const colour = `var(--flash-${change > 0 ? "up" : change < 0 ? "down" : "same"})`;
    this.flash?.cancel();
    const frames = [{ backgroundColor: colour }, { backgroundColor: "transparent" }];
    this.flash = this.primary.box.animate(frames, { duration: FLASH_MS, easing: "ease-out" });
  }

  /** Releases the row. */
  hide() {
    this.row = null;
    this.index = -1;
    this.top = -1;
    this.flash?.cancel();
  }
}

/** Classes of the cells of fields: the one of the role, and the slot that it has on a narrow screen. */
function classesOf(columns) {
  const primary = primaryOf(columns);
  let slot = 1;
  return columns.map((column) => {
    const name = column.role === "last" ? "value" : (column.role ?? "chosen");
    return `field ${name} ${column === primary ? "slot-1" : `slot-${(slot += 1)}`}`;
  });
}

/** The width of a column: prices are longer than sizes. */
function widthOf({ role }) {
  return { size: "minmax(5.3rem, 0.75fr)", volume: "minmax(5.8rem, 0.9fr)" }[role] ?? "minmax(5rem, 1.35fr)";
}

/** The table in the element `grid`: a header and a scrolling body. The grid itself takes the keyboard focus. */
export class Table {
  #market;
  #grid;
  #body;
  #head;
  #spacer;
  #lines = [];
  #rowPx = 0;
  /** The selected row, and the open one with its panel's rows. */
  #selected = null;
  #open = null;
  #detail;
  #detailRows = 0;
  #openIndex = -1;
  #stale = true;
  #columnsVersion = -1;
  #decimals = [];
  #reducedMotion;

  /** `detail` is the panel of an open row: `{element, open(row), close()}`. */
  constructor(grid, market, detail) {
    this.#market = market;
    this.#grid = grid;
    this.#detail = detail;
    this.#body = grid.querySelector(".body");
    this.#head = grid.querySelector(".head");
    this.#spacer = grid.querySelector(".spacer");
    this.#reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
    this.#body.addEventListener("scroll", () => (this.#stale = true), { passive: true });
    new ResizeObserver(() => this.#measure()).observe(this.#body);
    this.#grid.addEventListener("keydown", (event) => this.#onKey(event));
    // Browsers make scrolling elements focusable: pass their focus on to the grid.
    this.#body.addEventListener("focus", () => this.#grid.focus({ preventScroll: true }));
    this.#body.addEventListener("click", (event) => this.#onClick(event));
    this.#head.addEventListener("click", (event) => {
      const button = event.target.closest("[data-sort]");
      if (button !== null) this.#sort(button.dataset.sort);
    });
    this.#measure();
  }

  /** Draws the changes; called once per frame. */
  draw() {
    this.#market.growColumns();
    if (this.#columnsVersion !== this.#market.columnsVersion) this.#setColumns();
    this.#grid.classList.toggle("has-gaps", this.#market.gaps > 0);
    const moved = this.#market.sort();
    const { order } = this.#market;
    if (moved || this.#stale) this.#place(order);
    const flashes = !this.#reducedMotion.matches && !document.hidden;
    for (const line of this.#lines) {
      if (line.row !== null) this.#show(line, line.row, line.index, flashes);
    }
  }

  #show(line, row, index, flashes) {
    line.show(row, this.#market, index, this.#topOf(index), flashes, (at, decimals) => {
      if (decimals <= (this.#decimals[at] ?? 0)) return;
      this.#decimals[at] = decimals;
      this.#grid.style.setProperty(`--decimals-${at}`, decimals);
    });
  }

  /** Where a row begins: those after the open one begin below its panel. */
  #topOf(index) {
    const openIndex = this.#openIndex;
    return (index + (openIndex >= 0 && index > openIndex ? this.#detailRows : 0)) * this.#rowPx;
  }

  #setColumns() {
    this.#columnsVersion = this.#market.columnsVersion;
    const { columns } = this.#market;
    this.#grid.dataset.fields = columns.length;
    this.#grid.setAttribute("aria-colcount", columns.length + COUNTERS.length + 1);
    this.#grid.style.setProperty("--fields", columns.length);
    this.#grid.style.setProperty("--field-columns", columns.map(widthOf).join(" "));
    this.#decimals = [];
    const classes = classesOf(columns);
    const headers = columns.map(({ key, label, tokens }, at) => {
      this.#grid.style.setProperty(`--decimals-${at}`, 0);
      return headerOf(classes[at], key, label, tokens === null ? "" : key);
    });
    const others = COUNTERS.map(({ name, label, title }) => headerOf(name, name, label, title));
    const focused = document.activeElement?.dataset?.sort;
    this.#head.replaceChildren(headerOf("name", "name", "Topic", ""), ...headers, ...others);
    if (focused !== undefined) this.#headerOf(focused)?.focus();
    for (const line of this.#lines) line.setColumns(columns);
    this.#showSorting();
    this.#stale = true;
  }

  #measure() {
    const rowPx = parseFloat(getComputedStyle(this.#grid).getPropertyValue("--row-height")) || 34;
    if (rowPx !== this.#rowPx) {
      this.#rowPx = rowPx;
      this.#lines.forEach((line) => (line.index = -1));
    }
    this.#detailRows = parseInt(getComputedStyle(this.#grid).getPropertyValue("--detail-rows"), 10) || 10;
    this.#stale = true;
  }

  /** Assigns an element to each visible row, keeping the ones already assigned. */
  #place(order) {
    this.#stale = false;
    this.#openIndex = this.#open === null ? -1 : order.indexOf(this.#open);
    const openRows = this.#openIndex < 0 ? 0 : this.#detailRows;
    const { element } = this.#detail;
    element.hidden = openRows === 0;
    if (openRows > 0) element.style.transform = `translateY(${(this.#openIndex + 1) * this.#rowPx}px)`;
    const rows = order.length + openRows;
    this.#spacer.style.height = `${rows * this.#rowPx}px`;
    this.#grid.style.setProperty("--rows", rows);
    this.#grid.setAttribute("aria-rowcount", order.length + 1);
    this.#grid.classList.toggle("scrolls", this.#body.scrollHeight > this.#body.clientHeight);
    const first = Math.max(0, Math.floor(this.#body.scrollTop / this.#rowPx) - openRows - OVERSCAN);
    const rendered = Math.ceil(this.#body.clientHeight / this.#rowPx) + openRows + 2 * OVERSCAN;
    const visible = order.slice(first, first + rendered);
    const assigned = new Map(this.#lines.filter((line) => line.row !== null).map((line) => [line.row, line]));
    const kept = visible.map((row) => assigned.get(row));
    const free = this.#lines.filter((line) => !kept.includes(line));
    visible.forEach((row, at) => {
      const line = kept[at] ?? free.pop() ?? this.#add();
      const index = first + at;
      this.#show(line, row, index, false);
      line.element.hidden = false;
      line.element.setAttribute("aria-expanded", row === this.#open);
      line.element.setAttribute("aria-selected", row === this.#selected);
    });
    for (const line of free) {
      line.hide();
      line.element.hidden = true;
      line.element.setAttribute("aria-selected", false);
    }
    // The selected row has no element while it is scrolled out of view.
    const selected = this.#lines.find(({ row }) => row !== null && row === this.#selected);
    if (selected === undefined) this.#grid.removeAttribute("aria-activedescendant");
    else this.#grid.setAttribute("aria-activedescendant", selected.element.id);
  }

  #add() {
    const line = new Line(this.#market.columns);
    this.#lines.push(line);
    this.#detail.element.before(line.element);
    return line;
  }

  #headerOf(key) {
    return [...this.#head.querySelectorAll("[data-sort]")].find(({ dataset }) => dataset.sort === key);
  }

  #sort(key) {
    this.#market.sortBy(key);
    this.#showSorting();
  }

  #showSorting() {
    const { key, down } = this.#market.sorting;
    for (const header of this.#head.querySelectorAll('[role="columnheader"]')) header.removeAttribute("aria-sort");
    this.#headerOf(key)?.parentElement.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  #onKey(event) {
    const { order } = this.#market;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape" && this.#open !== null) {
      event.preventDefault();
      this.close();
      return;
    }
    if (event.target !== this.#grid && event.target !== this.#body) return;
    const page = Math.max(1, Math.floor(this.#body.clientHeight / this.#rowPx) - 1);
    const last = order.length - 1;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    const isToggle = event.key === "Enter" || event.key === " ";
    if ((step === undefined && !isToggle) || last < 0) return;
    event.preventDefault();
    const from = this.#selected === null ? -1 : order.indexOf(this.#selected);
    if (isToggle && from >= 0) this.#toggle(from);
    else if (!isToggle) this.#select(Math.min(last, Math.max(0, from + step)));
  }

  #onClick(event) {
    const line = this.#lines.find(({ element }) => element.contains(event.target));
    if (line !== undefined) this.#toggle(line.index);
  }

  /** Opens a row, or closes it if it is open. */
  #toggle(index) {
    const row = this.#market.order[index];
    if (this.#open === row) return this.close();
    this.#open = row;
    this.#detail.open(row);
    this.#select(index);
  }

  /** Closes the open row and returns the focus to the table. */
  close() {
    const hadFocus = this.#detail.element.contains(document.activeElement);
    this.#open = null;
    this.#detail.close();
    this.#place(this.#market.order);
    if (hadFocus) this.#grid.focus({ preventScroll: true });
  }

  #select(index) {
    this.#selected = this.#market.order[index];
    this.#place(this.#market.order);
    const top = this.#topOf(index);
    const bottom = top + this.#rowPx * (this.#openIndex === index ? 1 + this.#detailRows : 1);
    const { scrollTop, clientHeight } = this.#body;
    // If both do not fit, the row's top is what shows.
    if (bottom > scrollTop + clientHeight) this.#body.scrollTop = Math.min(top, bottom - clientHeight);
    if (top < this.#body.scrollTop) this.#body.scrollTop = top;
    this.#place(this.#market.order);
  }
}

function headerOf(className, key, label, title) {
  const header = span(className, "columnheader");
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.sort = key;
  button.textContent = label;
  button.title = title;
  header.append(button);
  return header;
}
