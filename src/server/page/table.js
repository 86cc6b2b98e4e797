// table.js: the table of a Market. Only visible rows have elements, so the cost does not grow with the number of topics.

import { count, rate } from "./stats.js";

/** Extra rows rendered above and below the visible ones. */
const OVERSCAN = 4;
const FLASH_MS = 700;

const COLUMNS = ["name", "value", "change", "rate", "sequence", "conflated", "gaps"];

/** Row elements created so far, to give each a unique id. */
let lines = 0;

/** A row element, reused for whichever row it currently shows. */
class Line {
  row = null;
  index = -1;
  cells = {};
  #texts = {};

  constructor() {
    this.element = document.createElement("div");
    this.element.className = "row";
    this.element.id = `row-${(lines += 1)}`;
    this.element.setAttribute("role", "row");
    for (const name of COLUMNS) {
      const cell = document.createElement("span");
      cell.className = name;
      cell.setAttribute("role", name === "name" ? "rowheader" : "gridcell");
      this.cells[name] = cell;
      this.element.append(cell);
    }
    this.prefix = document.createElement("span");
    this.prefix.className = "prefix";
    this.symbol = document.createElement("b");
    this.cells.name.append(this.prefix, this.symbol);
  }

  show(row, index, top, flashes) {
    const isSame = this.row === row;
    if (isSame && !row.dirty && this.index === index) return;
    if (!isSame) {
      this.row = row;
      this.flash?.cancel();
      this.prefix.textContent = row.prefix;
      this.symbol.textContent = row.symbol;
      this.cells.name.title = row.name;
    }
    if (this.index !== index) {
      this.index = index;
      this.element.setAttribute("aria-rowindex", index + 2);
      this.element.style.transform = `translateY(${top}px)`;
    }
    const before = row.value;
    const textBefore = row.text;
    row.parse();
    row.dirty = false;
    this.#put("value", row.text);
    this.#put("change", row.changeText);
    this.#put("rate", rate(row.rate));
    this.#put("sequence", row.sequence === 0 ? "–" : count(row.sequence));
    this.#put("conflated", count(row.conflated));
    this.#put("gaps", count(row.gaps));
    this.cells.change.title = row.changeTitle;
    const { classList } = this.cells.change;
    classList.toggle("up", row.changeText.startsWith("+"));
    classList.toggle("down", row.changeText.startsWith("−"));
    this.cells.gaps.classList.toggle("nonzero", row.gaps > 0);
    if (isSame && flashes && textBefore !== row.text && textBefore !== "–") this.#flash(row.value - before);
  }

  #put(name, text) {
    if (this.#texts[name] !== text) {
      this.#texts[name] = text;
      this.cells[name].textContent = text;
    }
  }

  #flash(change) {
    const colour = `var(--flash-${change > 0 ? "up" : change < 0 ? "down" : "same"})`;
    this.flash?.cancel();
    const frames = [{ backgroundColor: colour }, { backgroundColor: "transparent" }];
    this.flash = this.cells.value.animate(frames, { duration: FLASH_MS, easing: "ease-out" });
  }

  /** Releases the row. */
  hide() {
    this.row = null;
    this.index = -1;
    this.flash?.cancel();
  }
}

/** The table in the element `grid`: a header and a scrolling body. The grid itself takes the keyboard focus. */
export class Table {
  #market;
  #grid;
  #body;
  #spacer;
  #lines = [];
  #rowPx = 0;
  /** The selected row. */
  #selected = null;
  #stale = true;
  #reducedMotion;

  constructor(grid, market) {
    this.#market = market;
    this.#grid = grid;
    this.#body = grid.querySelector(".body");
    this.#spacer = grid.querySelector(".spacer");
    this.#reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
    this.#body.addEventListener("scroll", () => (this.#stale = true), { passive: true });
    new ResizeObserver(() => this.#measure()).observe(this.#body);
    this.#grid.addEventListener("keydown", (event) => this.#onKey(event));
    // Browsers make scrolling elements focusable: pass their focus on to the grid.
    this.#body.addEventListener("focus", () => this.#grid.focus({ preventScroll: true }));
    this.#body.addEventListener("click", (event) => this.#onClick(event));
    for (const button of grid.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => this.#sort(button));
    }
    this.#measure();
  }

  /** Draws the changes; called once per frame. */
  draw() {
    const moved = this.#market.sort();
    const { order } = this.#market;
    if (moved || this.#stale) this.#place(order);
    const flashes = !this.#reducedMotion.matches && !document.hidden;
    for (const line of this.#lines) {
      if (line.row !== null) line.show(line.row, line.index, line.index * this.#rowPx, flashes);
    }
  }

  #measure() {
    const rowPx = parseFloat(getComputedStyle(this.#grid).getPropertyValue("--row-height")) || 34;
    if (rowPx !== this.#rowPx) {
      this.#rowPx = rowPx;
      this.#lines.forEach((line) => (line.index = -1));
    }
    this.#stale = true;
  }

  /** Assigns an element to each visible row, keeping the ones already assigned. */
  #place(order) {
    this.#stale = false;
    this.#spacer.style.height = `${order.length * this.#rowPx}px`;
    this.#grid.style.setProperty("--rows", order.length);
    this.#grid.setAttribute("aria-rowcount", order.length + 1);
    this.#grid.classList.toggle("scrolls", this.#body.scrollHeight > this.#body.clientHeight);
    const first = Math.max(0, Math.floor(this.#body.scrollTop / this.#rowPx) - OVERSCAN);
    const rendered = Math.ceil(this.#body.clientHeight / this.#rowPx) + 2 * OVERSCAN;
    const visible = order.slice(first, first + rendered);
    const assigned = new Map(this.#lines.filter((line) => line.row !== null).map((line) => [line.row, line]));
    const kept = visible.map((row) => assigned.get(row));
    const free = this.#lines.filter((line) => !kept.includes(line));
    visible.forEach((row, at) => {
      const line = kept[at] ?? free.pop() ?? this.#add();
      const index = first + at;
      line.show(row, index, index * this.#rowPx, false);
      line.element.hidden = false;
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
    const line = new Line();
    this.#lines.push(line);
    this.#spacer.append(line.element);
    return line;
  }

  #sort(button) {
    const { key, down } = this.#market.sortBy(button.dataset.sort);
    for (const header of this.#grid.querySelectorAll('[role="columnheader"]')) header.removeAttribute("aria-sort");
    const header = this.#grid.querySelector(`[data-sort="${key}"]`).parentElement;
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  #onKey(event) {
    const page = Math.max(1, Math.floor(this.#body.clientHeight / this.#rowPx) - 1);
    const last = this.#market.order.length - 1;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey || last < 0) return;
    if (event.target !== this.#grid && event.target !== this.#body) return;
    event.preventDefault();
    const from = this.#selected === null ? -1 : this.#market.order.indexOf(this.#selected);
    this.#select(Math.min(last, Math.max(0, from + step)));
  }

  #onClick(event) {
    const line = this.#lines.find(({ element }) => element.contains(event.target));
    if (line !== undefined) this.#select(line.index);
  }

  #select(index) {
    this.#selected = this.#market.order[index];
    const top = index * this.#rowPx;
    const { scrollTop, clientHeight } = this.#body;
    if (top < scrollTop) this.#body.scrollTop = top;
    else if (top + this.#rowPx > scrollTop + clientHeight) this.#body.scrollTop = top + this.#rowPx - clientHeight;
    this.#place(this.#market.order);
  }
}
