// chooser.js: what the user chooses about the table: its columns and the filter. Both are in the URL.

import { COLUMNS_MAX, parseColumn, parseColumns } from "./columns.js";
import { formatPointer } from "./fields.js";

/** Longest text of a column or filter. */
const TEXT_MAX = 256;

/** Shortest time between two changes of the URL: Safari refuses more than 100 in 30 s. */
export const URL_MS = 500;

/** The URL, which `write` changes: at once if it has not for URL_MS, else when that is over. */
export class Address {
  #write;
  #timer = 0;
  #isStale = false;

  constructor(write) {
    this.#write = write;
  }

  /** There is something to write. */
  store() {
    this.#isStale = true;
    if (this.#timer === 0) this.#writeNext();
  }

  /** Writes what waits, at once: the page is left. */
  flush() {
    if (this.#isStale) this.#write();
    this.#isStale = false;
  }

  #writeNext() {
    this.#timer = this.#isStale ? setTimeout(() => this.#writeNext(), URL_MS) : 0;
    this.flush();
  }
}

/**
 * The columns in force, as chips that remove them, and a form that adds one. `changed()` is called after each change, to update
 * the URL.
 */
export class Chooser {
  #market;
  #parts;
  #changed;
  #version = -1;

  /** `parts` are elements: `toggle`, `panel`, `chips`, `form`, `input`, `error`, `reset`. */
  constructor(market, parts, changed) {
    this.#market = market;
    this.#parts = parts;
    this.#changed = changed;
    parts.toggle.addEventListener("click", () => {
      this.#show(parts.panel.hidden);
      if (!parts.panel.hidden) parts.input.focus();
    });
    parts.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#add();
    });
    parts.reset.addEventListener("click", () => this.#choose(null));
    parts.chips.addEventListener("click", ({ target }) => {
      const { key } = target.closest("button")?.dataset ?? {};
      if (key === undefined) return;
      const rest = this.#market.columns.filter((column) => column.key !== key);
      this.#choose(rest.length === 0 ? null : rest);
      this.#parts.input.focus();
    });
  }

  /** Takes the columns of a URL. */
  load(query) {
    const columns = parseColumns(query.getAll("column").slice(0, COLUMNS_MAX).map((text) => text.slice(0, TEXT_MAX)));
    if (columns.length > 0) this.#market.chooseColumns(columns);
  }

  /** Adds the columns to a URL, if the user chose them. */
  store(query) {
    if (this.#market.areColumnsChosen) for (const { text } of this.#market.columns) query.append("column", text);
  }

  /** Draws the chips if the columns have changed; called once per frame. */
  draw() {
    if (this.#version === this.#market.columnsVersion) return;
    this.#version = this.#market.columnsVersion;
    const chips = this.#market.columns.map(({ key, label, tokens }) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.key = key;
      button.textContent = tokens === null ? label : `${label} `;
      if (tokens !== null) {
        const code = document.createElement("code");
        code.textContent = key;
        button.append(code);
      }
      button.setAttribute("aria-label", `Remove the column ${label}`);
      item.append(button);
      return item;
    });
    this.#parts.chips.replaceChildren(...chips);
    this.#parts.reset.disabled = !this.#market.areColumnsChosen;
  }

  /** Whether a field of a row is in a column: by its pointer, or as the guessed one. */
  isShown(pointer, row) {
    return this.#columnOf(pointer, row) !== undefined;
  }

  /** Adds the column of a pointer, or removes the one that shows it. */
  toggle(pointer, row) {
    const shown = this.#columnOf(pointer, row);
    if (shown === undefined) return this.#extend(parseColumn(pointer));
    const rest = this.#market.columns.filter((column) => column !== shown);
    this.#choose(rest.length === 0 ? null : rest);
  }

  #columnOf(pointer, row) {
    return this.#market.columns.find(({ key, role }) => {
      if (role === null) return key === pointer;
      const path = row.paths[role];
      return path !== undefined && formatPointer(path) === pointer;
    });
  }

  #show(isShown) {
    this.#parts.panel.hidden = !isShown;
    this.#parts.toggle.setAttribute("aria-expanded", isShown);
  }

  #add() {
    const { input } = this.#parts;
    const column = parseColumn(input.value.trim().slice(0, TEXT_MAX));
    if (column === null) {
      return this.#tell("Not a field: type bid, ask, last, size or volume, or a JSON pointer such as /data/0/price.");
    }
    if (this.#extend(column)) input.value = "";
  }

  #extend(column) {
    const { columns } = this.#market;
    if (column === null) return this.#tell("This pointer is too long.");
    if (columns.some(({ key }) => key === column.key)) return this.#tell("This column is in the table.");
    if (columns.length >= COLUMNS_MAX) return this.#tell(`At most ${COLUMNS_MAX} columns: remove one first.`);
    this.#choose([...columns, column]);
    return true;
  }

  #choose(columns) {
    this.#tell("");
    this.#market.chooseColumns(columns);
    this.#changed();
  }

  #tell(text) {
    this.#parts.error.textContent = text;
    this.#parts.error.hidden = text === "";
    if (text !== "") this.#show(true);
    return false;
  }
}
