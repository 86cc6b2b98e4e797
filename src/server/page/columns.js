// columns.js: which fields the table shows: guessed ones, or those that the user chose in the page or in the URL. No DOM.

import { ROLES, formatPointer, parsePointer } from "./fields.js";

/** Columns of fields at once. */
export const COLUMNS_MAX = 8;
const LABEL_MAX = 24;
/** Decimals of columns whose numbers may be rounded: sizes and volumes, not prices. Small numbers keep significant digits. */
const DECIMALS = { size: 4, volume: 2 };
const SIGNIFICANT_DIGITS = 4;

/**
 * A column: a guessed field (`role`) or a JSON pointer (`tokens`). `key` tells it apart from the others; that of the role `last`
 * is `value`.
 */
function ofRole(role) {
  const key = role === "last" ? "value" : role;
  return { key, label: role[0].toUpperCase() + role.slice(1), role, tokens: null, text: role };
}

/** The column that a text asks for: `bid`, `/data/0/price` or `Mid=/data/mid`; `null` if none. A key may end in a space. */
export function parseColumn(text) {
  const role = text.trim().toLowerCase();
  if (ROLES.includes(role)) return ofRole(role);
  const at = text.indexOf("=/");
  const isLabelled = at > 0 && !text.startsWith("/");
  const pointer = isLabelled ? text.slice(at + 1) : text;
  const tokens = pointer === "" ? null : parsePointer(pointer);
  if (tokens === null) return null;
  const label = (isLabelled ? text.slice(0, at).trim() : labelOf(tokens)).slice(0, LABEL_MAX);
  return { key: pointer, label, role: null, tokens, text: isLabelled ? `${label}=${pointer}` : pointer };
}

/** The last names of a pointer: an index alone says nothing. */
function labelOf(tokens) {
  const at = tokens.findLastIndex((token) => !/^\d+$/.test(token));
  return at < 0 ? formatPointer(tokens) : tokens.slice(at).join(".");
}

/** The columns that texts ask for, without repetitions and at most COLUMNS_MAX; texts that ask for none are left out. */
export function parseColumns(texts) {
  const columns = new Map();
  for (const text of texts) {
    const column = parseColumn(text);
    if (column !== null && columns.size < COLUMNS_MAX) columns.set(column.key, columns.get(column.key) ?? column);
  }
  return [...columns.values()];
}

/** A column for each role. */
export const ROLE_COLUMNS = ROLES.map(ofRole);

/** Columns of the guessed fields, in their order. Without any, `last` is the one. */
export function columnsOfRoles(roles) {
  const found = ROLES.filter((role) => roles.has(role));
  return (found.length === 0 ? ["last"] : found).map(ofRole);
}

/** The column whose value the change and the history are of. */
export function primaryOf(columns) {
  return columns.find(({ role }) => role === "last") ?? columns[0];
}

/** Rounds a long number of a column that may be rounded; prices stay as published. */
export function roundedFor(column, text) {
  const most = DECIMALS[column.role];
  if (most === undefined || !/^-?\d+\.\d+$/.test(text)) return text;
  const value = Math.abs(Number(text));
  const zeros = value >= 1 || value === 0 ? 0 : Math.ceil(-Math.log10(value)) - 1;
  const decimals = value >= 1 ? most : Math.max(most, Math.min(12, zeros + SIGNIFICANT_DIGITS));
  return text.length - text.indexOf(".") - 1 <= decimals ? text : Number(text).toFixed(decimals);
}
