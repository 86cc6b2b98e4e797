// dom.js: elements of the page by id, their texts, and the list of events.

const EVENTS_MAX = 12;
const FAILURES_MAX = 16;

export const byId = (id) => document.getElementById(id);

/** Sets an element's text, if it differs. */
export function setText(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** Adds a line to the events, with the time. */
export function logEvent(text) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  const now = new Date();
  time.dateTime = now.toISOString();
  time.textContent = now.toLocaleTimeString("en-GB");
  item.append(time, text);
  const events = byId("events");
  events.prepend(item);
  while (events.children.length > EVENTS_MAX) events.lastElementChild.remove();
}

const failures = new Set();
/** Runs one part of an update. If it throws, logs the error once; the other parts still run. */
export function attempt(part) {
  try {
    part();
  } catch (error) {
    if (failures.has(error.message)) return;
    if (failures.size < FAILURES_MAX) failures.add(error.message);
    console.error(error);
  }
}
