// table.js: the table of a Market. Only the rows in sight have elements, however many topics there are.

import { count, rate } from "./stats.js";

/** Rows kept ready above and below those in sight. */
const MARGIN = 4;
const FLASH_MS = 700;

const COLUMNS = ["name", "value", "change", "rate", "sequence", "conflated", "gaps"];

/** Elements of rows so far: each has an id of its own, whichever row it shows. */
let lines = 0;

/** A row's element, and the row that it shows. */
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
    row.look();
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
    this.cells.gaps.classList.toggle("some", row.gaps > 0);
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

  /** Shows nothing. */
  hide() {
    this.row = null;
    this.index = -1;
    this.flash?.cancel();
  }
}

/** The element is `grid`, which has the focus: a head, and a body that scrolls. */
export class Table {
  #market;
  #grid;
  #body;
  #space;
  #lines = [];
  #rowPx = 0;
  /** The row that is chosen. */
  #active = null;
  #stale = true;
  #still;

  constructor(grid, market) {
    this.#market = market;
    this.#grid = grid;
    this.#body = grid.querySelector(".body");
    this.#space = grid.querySelector(".space");
    this.#still = matchMedia("(prefers-reduced-motion: reduce)");
    this.#body.addEventListener("scroll", () => (this.#stale = true), { passive: true });
    new ResizeObserver(() => this.#measure()).observe(this.#body);
    this.#grid.addEventListener("keydown", (event) => this.#key(event));
    // Of what scrolls, browsers make a stop of its own otherwise.
    this.#body.addEventListener("focus", () => this.#grid.focus({ preventScroll: true }));
    this.#body.addEventListener("click", (event) => this.#click(event));
    for (const button of grid.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => this.#sort(button));
    }
    this.#measure();
  }

  /** Draws what changed. Once a frame. */
  draw() {
    const moved = this.#market.settle();
    const { order } = this.#market;
    if (moved || this.#stale) this.#place(order);
    const flashes = !this.#still.matches && !document.hidden;
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

  /** Gives each row in sight an element: the one it has, if it has one. */
  #place(order) {
    this.#stale = false;
    this.#space.style.height = `${order.length * this.#rowPx}px`;
    this.#grid.style.setProperty("--rows", order.length);
    this.#grid.setAttribute("aria-rowcount", order.length + 1);
    this.#grid.classList.toggle("scrolls", this.#body.scrollHeight > this.#body.clientHeight);
    const first = Math.max(0, Math.floor(this.#body.scrollTop / this.#rowPx) - MARGIN);
    const inSight = Math.ceil(this.#body.clientHeight / this.#rowPx) + 2 * MARGIN;
    const wanted = order.slice(first, first + inSight);
    const having = new Map(this.#lines.filter((line) => line.row !== null).map((line) => [line.row, line]));
    const kept = wanted.map((row) => having.get(row));
    const free = this.#lines.filter((line) => !kept.includes(line));
    wanted.forEach((row, at) => {
      const line = kept[at] ?? free.pop() ?? this.#add();
      const index = first + at;
      line.show(row, index, index * this.#rowPx, false);
      line.element.hidden = false;
      line.element.setAttribute("aria-selected", row === this.#active);
    });
    for (const line of free) {
      line.hide();
      line.element.hidden = true;
      line.element.setAttribute("aria-selected", false);
    }
    // Out of sight it has no element.
    const active = this.#lines.find(({ row }) => row !== null && row === this.#active);
    if (active === undefined) this.#grid.removeAttribute("aria-activedescendant");
    else this.#grid.setAttribute("aria-activedescendant", active.element.id);
  }

  #add() {
    const line = new Line();
    this.#lines.push(line);
    this.#space.append(line.element);
    return line;
  }

  #sort(button) {
    const { key, down } = this.#market.sortBy(button.dataset.sort);
    for (const header of this.#grid.querySelectorAll('[role="columnheader"]')) header.removeAttribute("aria-sort");
    const header = this.#grid.querySelector(`[data-sort="${key}"]`).parentElement;
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.#body.clientHeight / this.#rowPx) - 1);
    const last = this.#market.order.length - 1;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey || last < 0) return;
    if (event.target !== this.#grid && event.target !== this.#body) return;
    event.preventDefault();
    const from = this.#active === null ? -1 : this.#market.order.indexOf(this.#active);
    this.#choose(Math.min(last, Math.max(0, from + step)));
  }

  #click(event) {
    const line = this.#lines.find(({ element }) => element.contains(event.target));
    if (line !== undefined) this.#choose(line.index);
  }

  #choose(index) {
    this.#active = this.#market.order[index];
    const top = index * this.#rowPx;
    const { scrollTop, clientHeight } = this.#body;
    if (top < scrollTop) this.#body.scrollTop = top;
    else if (top + this.#rowPx > scrollTop + clientHeight) this.#body.scrollTop = top + this.#rowPx - clientHeight;
    this.#place(this.#market.order);
  }
}
