// main.js: connects the parts of the page. It manages subscriptions, routes each tick to the table, the ECG trace and the
// statistics, and reports what was missed while the connection was down or the page was paused, hidden or suspended.

import { Address, Chooser } from "./chooser.js";
import { Detail } from "./detail.js";
import { attempt, byId, logEvent, setText } from "./dom.js";
import { SAMPLE_MS } from "./history.js";
import { Link } from "./link.js";
import { Market, ROWS_MAX } from "./market.js";
import { Sparkline, Stats, bytes, count, deltaWarning, duration, many, ms, offsetText, rate, wallMs } from "./stats.js";
import { Sweep, showEcg } from "./sweep.js";
import { Table } from "./table.js";
import { Wave } from "./wave.js";
import { FLAG_SNAPSHOT, FROM, KIND, POLICY, matches, subscribe, unsubscribe, update } from "./wire.js";

const WAVE = "ecg.wave";
const INFO = "ecg.info";
const PARAMS = "ecg.params";
const ECG_TOPICS = [INFO, PARAMS, WAVE];
/** A page hidden for this long unsubscribes until it is visible again. */
const HIDDEN_MS = 10_000;
/** Delay between returning from an absence and reporting it, so that announcements of missed ticks can arrive. */
const SETTLE_MS = 1_500;
/** A probe topic without a tick for this long is replaced by another. */
const PROBE_IDLE_MS = 5_000;
/** A one-second timer later than this means that the page was suspended. */
const SECOND_MS_MAX = 4_000;
const RATES = [0, 1, 5, 20];

const colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["trace", "beat", "line", "area", "grid-fine", "grid-coarse", "gap", "rule"];
  for (const name of names) colours[name] = style.getPropertyValue(`--${name}`).trim();
}
readColours();

const stats = new Stats();
const market = new Market();
const wave = new Wave();
const chooserParts = {
  toggle: byId("columns"),
  panel: byId("columns-panel"),
  chips: byId("chips"),
  form: byId("column-form"),
  input: byId("column"),
  error: byId("column-error"),
  reset: byId("columns-reset"),
};
const address = new Address(writeUrl);
const chooser = new Chooser(market, chooserParts, () => address.store());
const detail = new Detail(market, chooser, () => colours, () => table.close());
byId("table").querySelector(".spacer").append(detail.element);
const table = new Table(byId("table"), market, detail);
const sweep = new Sweep(byId("grid"), byId("wave"), wave, () => ({
  trace: colours.trace,
  beat: colours.beat,
  fine: colours["grid-fine"],
  coarse: colours["grid-coarse"],
  lost: colours.gap,
}));
const curve = (id) => new Sparkline(byId(id), () => ({ line: colours.line, area: colours.area }));
const latencyCurve = curve("latency-curve");
const ticksCurve = curve("ticks-curve");
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** Patterns and maximum rate shown in the table. */
let patterns = [];
/** The text of the patterns: what is being typed is not in force yet. */
let patternsText = "";
let rateMax = 5;
/** Epoch of the server; 0n before the first welcome. */
let epoch = 0n;
/** Epochs of the topics that the page knows, by name: sequences start at 1 again with each. */
const epochs = new Map();
/** Topics of this connection by topic id: `{name, row, isEcg}`. */
let topics = new Map();
/** Subscribed patterns of this connection, each with the id of the request that last changed it. */
const subscriptions = new Map();
let requests = 0;
/** The absence in progress or not yet reported: `{why, since, ...}`, with `returnedAt` once ticks flow again. */
let absence = null;
/** Why the page has unsubscribed from everything: `paused` by the user, `hidden`, or empty if it has not. */
let suspended = "";
let hideTimer = 0;
let state = "connecting";
let retryAt = 0;
let reconnects = 0;
/** Position in `ecg.wave`: the next sequence (0: none), the last sequence of recovered history, and the batches recovered. */
const wavePosition = { next: 0, recoveredUpTo: 0, recovered: 0 };
/** Batches lost while the table did not list the wave, so that no row counted them. */
let lostUnlisted = 0;
/** Topic that latency is measured on when there is no wave. Its rate is unlimited: a rate limit would delay its ticks. */
let probe = "";
/** When the probe's last tick arrived, and whether the server has confirmed its unlimited rate. */
let probeAt = 0;
let isProbeUnlimited = false;

const link = new Link(socketAddress(), { state: onState, welcome: onWelcome, frame: onFrame, woke: onWoke });

function socketAddress() {
  const url = new URL("ws", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

// Subscriptions.

function subscribeTo(pattern, options) {
  if (subscriptions.has(pattern)) return;
  requests += 1;
  subscriptions.set(pattern, requests);
  link.send(subscribe(requests, pattern, options));
}

function subscribeToAll() {
  if (suspended !== "") return;
  subscribeTo(INFO, { from: FROM.latest, policy: POLICY.conflate });
  subscribeTo(PARAMS, { from: FROM.latest, policy: POLICY.conflate });
  // Sequence 0 asks for the whole history that the server still has, so that the trace starts filled.
  const place = { epoch: epochs.get(WAVE) ?? epoch, sequence: Math.max(0, wavePosition.next - 1) };
  subscribeTo(WAVE, { place, policy: POLICY.drop });
  for (const pattern of patterns) subscribeTo(pattern, { from: FROM.latest, policy: POLICY.conflate, rate: rateMax });
}

/** Chooses the topic to measure latency on: to add little load, the slowest with at least one tick per second. */
function chooseProbe() {
  if (probe !== "" && (wave.isFlowing || performance.now() - probeAt > PROBE_IDLE_MS)) releaseProbe();
  if (state !== "live" || suspended !== "" || probe !== "" || rateMax === 0 || wave.isFlowing) return;
  const candidates = [...market.rows.values()].filter((row) => row.rate >= 1 && !ECG_TOPICS.includes(row.name));
  if (candidates.length === 0) return;
  probe = candidates.reduce((slowest, row) => (row.rate < slowest.rate ? row : slowest)).name;
  probeAt = performance.now();
  isProbeUnlimited = false;
  if (subscriptions.has(probe)) setRate(probe, 0);
  else subscribeTo(probe, { policy: POLICY.conflate });
}

function releaseProbe() {
  const name = probe;
  probe = "";
  if (patterns.includes(name)) setRate(name, rateMax);
  else unsubscribeFrom([name]);
}

/** Changes the maximum rate of a subscription. */
function setRate(pattern, ticksPerSecond) {
  requests += 1;
  subscriptions.set(pattern, requests);
  link.send(update(requests, pattern, { policy: POLICY.conflate, rate: ticksPerSecond }));
}

/** Whether latency is measured on this topic, which requires that no rate limit delays its ticks. */
function isMeasured(name) {
  if (wave.isFlowing) return name === WAVE;
  return rateMax === 0 || (isProbeUnlimited && name === probe);
}

function unsubscribeFrom(stopped) {
  probe = "";
  for (const pattern of stopped) {
    if (!subscriptions.delete(pattern)) continue;
    requests += 1;
    link.send(unsubscribe(requests, pattern));
  }
}

/** Whether the table lists a topic. ECG topics are listed only if a pattern starts with `ecg`. */
function isListed(name) {
  const matching = patterns.filter((pattern) => matches(pattern, name));
  return matching.some((pattern) => !name.startsWith("ecg.") || pattern.startsWith("ecg"));
}

function topicOf(name) {
  return { name, row: isListed(name) ? market.row(name) : null, isEcg: name.startsWith("ecg.") };
}

function showPatterns(text, ticksPerSecond) {
  unsubscribeFrom([...subscriptions.keys()].filter((pattern) => !ECG_TOPICS.includes(pattern)));
  patternsText = text;
  const typed = text.split(",").map((pattern) => pattern.trim());
  patterns = typed.some((pattern) => pattern !== "") ? typed.filter((pattern) => pattern !== "") : [">"];
  rateMax = ticksPerSecond;
  byId("topics-error").hidden = true;
  table.close();
  market.clear();
  for (const [id, { name }] of topics) topics.set(id, topicOf(name));
  if (state === "live") subscribeToAll();
}

// Events from the link.

function onState(next, detail) {
  if (state === "live" && next !== "live") beginAbsence("lost");
  state = next;
  document.body.dataset.state = next;
  const texts = { connecting: "Connecting", live: "Live", waiting: "Disconnected", refused: "Closed by server" };
  setText("state-text", next === "live" && suspended === "paused" ? "Paused" : texts[next]);
  retryAt = detail.at ?? 0;
  // No banner during the first attempt: nothing has failed yet.
  byId("banner").hidden = next === "live" || (next === "connecting" && byId("banner-text").dataset.why === undefined);
  if (next === "waiting" || next === "refused") {
    subscriptions.clear();
    probe = "";
    topics = new Map();
    byId("banner-text").dataset.why = `${detail.reason} (${detail.code})`;
  }
  if (next === "refused") logEvent(`Closed by the server, not reconnecting: ${detail.reason} (${detail.code})`);
  countDown();
}

function onWelcome(welcome) {
  const isNewEpoch = epoch !== 0n && welcome.epoch !== epoch;
  if (epoch === 0n) logEvent(`Connected to ${welcome.server}.`);
  else reconnects += 1;
  if (isNewEpoch) {
    epochs.clear();
    restartWave();
  }
  epoch = welcome.epoch;
  stats.reset();
  setText("server", welcome.server);
  byId("server").title = `${welcome.server}, session ${welcome.session.toString(16)}`;
  setText("reconnects", count(reconnects));
  document.body.dataset.reconnects = reconnects;
  if (absence !== null) absence.isNewEpoch ||= isNewEpoch;
  if (suspended === "") endAbsence();
}

function restartWave() {
  wave.clear();
  Object.assign(wavePosition, { next: 0, recoveredUpTo: 0, recovered: 0 });
}

/** A topic is announced; with a new epoch, the server had forgotten it in between. */
function onTopic(id, name, topicEpoch) {
  const topic = topicOf(name);
  const before = epochs.get(name);
  if (before !== undefined && before !== topicEpoch) {
    if (name === WAVE) restartWave();
    topic.row?.reset(true);
  }
  if (topic.row !== null || topic.isEcg) epochs.set(name, topicEpoch);
  topics.set(id, topic);
}

function onFrame(frame, messageBytes) {
  stats.bytes(messageBytes);
  switch (frame.kind) {
    case KIND.tick:
      return onTick(frame);
    case KIND.subscribed:
      if (frame.topicId !== 0) onTopic(frame.topicId, frame.text(), frame.big(0));
      else if (frame.u32(8) === subscriptions.get(probe)) isProbeUnlimited = true;
      return;
    case KIND.conflated:
    case KIND.gap:
      return onSkipped(frame);
    case KIND.recovered:
      if (frame.text() === WAVE) onRecovered(frame.u64(8), frame.u32(16) !== 0);
      return;
    case KIND.error:
      return onError(frame.u32(0), frame.u16(4), frame.text());
  }
}

function onTick(frame) {
  const topic = topics.get(frame.topicId);
  if (topic === undefined) return;
  const arrivalMs = wallMs();
  const isSnapshot = (frame.flags & FLAG_SNAPSHOT) !== 0;
  let isHistory = isSnapshot;
  if (topic.name === probe) probeAt = performance.now();
  if (topic.name === WAVE) {
    isHistory ||= frame.sequence <= wavePosition.recoveredUpTo;
    onBatch(frame, topic.row !== null);
  } else if (topic.isEcg) {
    onEcgTick(topic.name, frame, !isSnapshot);
  }
  stats.tick(arrivalMs, frame.u64(0), frame.u64(8), !isHistory && isMeasured(topic.name));
  if (topic.row !== null) market.tick(topic.row, frame);
}

function onBatch(frame, isListed) {
  const { sequence } = frame;
  // A snapshot stands in for history that the server no longer has, so the gap before it is expected.
  const isAnnounced = (frame.flags & FLAG_SNAPSHOT) !== 0;
  if (wavePosition.next !== 0 && sequence > wavePosition.next) {
    countLostBatches(sequence - wavePosition.next, isAnnounced, isListed);
  }
  if (sequence < wavePosition.next) return;
  if (sequence <= wavePosition.recoveredUpTo) wavePosition.recovered += 1;
  wavePosition.next = sequence + 1;
  wave.take(frame.u64(0) / 1e6, frame.u64(8) / 1e6, frame.floats());
}

/** Counts lost batches. If the table lists the wave, its row counts them too, so only `wave.lost` grows here. */
function countLostBatches(batches, isAnnounced, isListed) {
  wave.lost += batches;
  if (isListed) return;
  lostUnlisted += batches;
  if (!isAnnounced) market.unannounced += batches;
}

function onEcgTick(name, frame, isLive) {
  try {
    if (name === INFO) {
      wave.takeInfo(frame.text());
    } else if (name === PARAMS && wave.takeParams(frame.text()) !== null && isLive && !reducedMotion.matches) {
      byId("heart-icon").animate([{ transform: "scale(1.35)" }, { transform: "scale(1)" }], { duration: 260, easing: "ease-out" });
    }
  } catch (error) {
    // Any client may publish on these topics, so a malformed payload is not an error of the page.
    console.warn(name, error);
  }
}

function onSkipped(frame) {
  const topic = topics.get(frame.topicId);
  if (topic === undefined) return;
  const [from, to] = [frame.u64(0), frame.u64(8)];
  if (topic.name === WAVE) {
    // Batches before the first one this page received do not count as lost.
    const isListed = topic.row !== null;
    const { next } = wavePosition;
    if (next !== 0 && from > next) countLostBatches(from - next, absence !== null, isListed);
    if (next !== 0 && to > next) countLostBatches(to - Math.max(from, next), true, isListed);
    wavePosition.next = next === 0 ? 0 : Math.max(next, to);
  }
  if (topic.row !== null) market.skip(topic.row, frame.kind === KIND.gap, from, to);
}

function onRecovered(sequence, isRecovered) {
  wavePosition.recoveredUpTo = isRecovered ? sequence : 0;
}

function onError(request, code, text) {
  const [pattern] = [...subscriptions].find(([, id]) => id === request) ?? [];
  if (pattern !== undefined) subscriptions.delete(pattern);
  if (pattern !== undefined && patterns.includes(pattern)) {
    setText("topics-error", `${text} (${code})`);
    byId("topics-error").hidden = false;
  } else {
    logEvent(`Server error: ${text} (${code})`);
  }
}

// Absences: times without ticks, because the connection was down or the page was paused, hidden or suspended.

function beginAbsence(why) {
  if (absence !== null && !absence.returnedAt) return;
  if (absence !== null) reportAbsence(absence);
  // If the server closed the connection while the page was suspended, the absence began with the suspension.
  const { since, before } = wakeUp ?? { since: Date.now(), before: missedSoFar() };
  wakeUp = null;
  const skipped = missedSoFar().skipped - before.skipped;
  absence = { why, since, isNewEpoch: false, skipped, lost: before.lost, hadWave: wave.isKnown };
  wavePosition.recovered = 0;
  market.pause();
}

function endAbsence() {
  if (absence !== null && !absence.returnedAt) {
    absence.returnedAt = Date.now();
    market.resume(absence.isNewEpoch);
    setTimeout(reportAbsence, SETTLE_MS, absence);
  }
  subscribeToAll();
}

function reportAbsence(ended) {
  if (absence !== ended) return;
  absence = null;
  market.restartRates();
  const what = { lost: "Reconnected after", paused: "Paused for", hidden: "Hidden for" }[ended.why];
  const parts = [`${what} ${duration(ended.returnedAt - ended.since)}.`];
  if (ended.isNewEpoch) {
    market.retain(new Set([...topics.values()].map(({ name }) => name)));
    parts.push("The server restarted: sequences start at 1 again, so the number of missed ticks is unknown.");
  } else {
    const ticks = market.missed + ended.skipped;
    parts.push(ticks === 0 ? "No ticks skipped." : `${many(ticks, "tick")} skipped; the table shows the latest.`);
    const lost = wave.lost - ended.lost;
    if (ended.hadWave) {
      const recovered = many(wavePosition.recovered, "batch", "batches");
      parts.push(`ECG: ${recovered} recovered, ${lost === 0 ? "none" : count(lost)} lost.`);
    }
  }
  logEvent(parts.join(" "));
}

function suspend(why) {
  if (suspended !== "") return;
  suspended = why;
  beginAbsence(why);
  // Patterns first: once the wave's own subscription ends, `>` alone would still deliver it, conflated to the rate limit.
  unsubscribeFrom([...subscriptions.keys()].reverse());
  showPause();
}

function resume() {
  suspended = "";
  showPause();
  if (state === "live") endAbsence();
}

function showPause() {
  const isPaused = suspended === "paused";
  const button = byId("pause");
  button.classList.toggle("on", isPaused);
  button.textContent = isPaused ? "Resume" : "Pause";
  if (state === "live") setText("state-text", isPaused ? "Paused" : "Live");
}

/** Ticks skipped in the table and wave batches lost since the page was opened. */
const missedSoFar = () => ({ skipped: market.conflated + market.gaps, lost: wave.lost });
/** `missedSoFar()` one second ago, or before the page was suspended. */
let missedBefore = missedSoFar();
let lastSecond = performance.now();
let lastSecondWall = Date.now();
/** `{since, before}` while announcements of what was missed during a suspension still arrive; else `null`. */
let wakeUp = null;

function onWoke(suspendedMs) {
  // Clocks and network path may have changed, so earlier measurements no longer apply.
  stats.reset();
  if (suspended !== "" || absence !== null || document.hidden) return;
  const ours = (wakeUp = { since: Date.now() - suspendedMs, before: missedBefore });
  market.restartRates();
  setTimeout(() => {
    if (wakeUp !== ours) return;
    wakeUp = null;
    market.restartRates();
    const { skipped, lost } = missedSoFar();
    const ticks = many(skipped - ours.before.skipped, "tick");
    const batches = many(lost - ours.before.lost, "ECG batch", "ECG batches");
    logEvent(`Page suspended for ${duration(suspendedMs)}: ${ticks} skipped, ${batches} lost.`);
  }, SETTLE_MS);
}

function onVisibility() {
  clearTimeout(hideTimer);
  if (document.hidden) hideTimer = setTimeout(suspend, HIDDEN_MS, "hidden");
  else if (suspended === "hidden") resume();
}
document.addEventListener("visibilitychange", onVisibility);
onVisibility();

// Display.

function countDown() {
  if (byId("banner").hidden) return;
  const why = byId("banner-text").dataset.why ?? "";
  const left = Math.max(0, Math.ceil((retryAt - performance.now()) / 1e3));
  const waiting = left > 0 ? `Retrying in ${left} s.` : "Retrying…";
  const next = { waiting, connecting: "Retrying…", refused: "" };
  setText("banner-text", `Disconnected: ${why}. ${next[state] ?? ""} The data shown is stale.`);
}

function showMarket() {
  const { size } = market.rows;
  byId("empty").hidden = size > 0;
  const published = [...market.rows.values()].reduce((sum, row) => sum + row.rate, 0);
  const isFull = market.unlisted > 0;
  const all = isFull ? `${count(ROWS_MAX)} of ${count(size + market.unlisted)} shown; narrow the pattern` : count(size);
  const listed = market.isFiltered ? `${count(market.order.length)} of ${isFull ? all : `${all} match`}` : all;
  setText("listed", size === 0 ? "" : listed);
  byId("market").classList.toggle("none-match", size > 0 && market.order.length === 0);
  showDeltas();
  const hint = `No ticks yet. Try: tickcast pub my.topic '{"value":1}'`;
  const nothing = patterns.includes(">") ? hint : `No ticks yet on ${patterns.join(", ")}.`;
  setText("empty", state === "live" && suspended === "" ? nothing : "No data.");
  setText("conflated", count(market.conflated));
  const lost = market.gaps + lostUnlisted;
  setText("lost", count(lost));
  byId("lost").classList.toggle("nonzero", lost > 0);
  setText("unannounced", count(market.unannounced));
  byId("unannounced").classList.toggle("nonzero", market.unannounced > 0);
  return published;
}

/** Warns if what the table shows of deltas is incomplete, because they are conflated. */
function showDeltas() {
  const warning = deltaWarning(market.deltas(), rateMax);
  byId("deltas").hidden = warning === "";
  if (warning === "") return;
  setText("deltas-text", warning);
  byId("every-tick").hidden = rateMax === 0;
}

function showStats(published) {
  setText("latency", ms(stats.p50));
  const measured = wave.isFlowing ? WAVE : probe || "all topics";
  setText("latency-more", Number.isNaN(stats.p99) ? "median, last second" : `median, p99 ${ms(stats.p99)}\non ${measured}`);
  const ticks = stats.ticksPerSecond.at(-1);
  setText("ticks", Number.isNaN(ticks) ? "–" : rate(ticks));
  setText("ticks-more", `${bytes(stats.bytesPerSecond)}/s\n${rate(published)}/s published`);
  setText("round-trip", ms(link.roundTripMs));
  setText("offset", offsetText(stats.offsetMs, stats.offsetErrorMs));
  latencyCurve.draw(stats.latency);
  ticksCurve.draw(stats.ticksPerSecond);
}

setInterval(() => {
  link.detectSuspension();
  const [now, wall] = [performance.now(), Date.now()];
  const elapsed = now - lastSecond;
  // After a suspension, keep the counts from before it: the difference is reported once the page has caught up.
  if (Math.max(elapsed, wall - lastSecondWall) < SECOND_MS_MAX) missedBefore = missedSoFar();
  lastSecond = now;
  lastSecondWall = wall;
  attempt(() => market.second(now));
  attempt(() => stats.second(link.shortestRoundTripMs));
  attempt(chooseProbe);
  attempt(countDown);
  if (document.hidden) return;
  attempt(() => showEcg({ wave, sweep, seconds: elapsed / 1e3, state, isSuspended: suspended !== "" }));
  sweep.frames = 0;
  attempt(() => showStats(showMarket()));
  document.body.dataset.rows = market.rows.size;
}, 1_000);

function frame(now) {
  requestAnimationFrame(frame);
  if (!byId("ecg").hidden) attempt(() => sweep.draw(now));
  attempt(() => table.draw());
  attempt(() => detail.draw(now));
  attempt(() => chooser.draw());
}

setInterval(() => document.hidden || attempt(() => market.sample()), SAMPLE_MS);

// User input.

/** Puts into the URL what the user chose: the page opened with it looks the same. */
function writeUrl() {
  const query = new URLSearchParams();
  const filter = byId("filter").value.trim();
  if (patternsText !== "") query.set("topics", patternsText);
  if (rateMax !== 5) query.set("rate", rateMax);
  if (filter !== "") query.set("filter", filter);
  chooser.store(query);
  history.replaceState(null, "", `${query}` === "" ? location.pathname : `?${query}`);
}

byId("subscription").addEventListener("submit", (event) => {
  event.preventDefault();
  showPatterns(byId("topics").value.trim(), Number(byId("rate").value));
  address.store();
});
byId("filter").addEventListener("input", () => {
  market.filter(byId("filter").value);
  address.store();
});
addEventListener("pagehide", () => address.flush());
byId("every-tick").addEventListener("click", () => {
  byId("rate").value = "0";
  byId("subscription").requestSubmit();
});
byId("rate").addEventListener("change", () => byId("subscription").requestSubmit());
byId("pause").addEventListener("click", () => (suspended === "paused" ? resume() : suspend("paused")));
byId("retry").addEventListener("click", () => link.retry());
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("select, textarea, input:not([type=checkbox])");
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape" && isTyping) event.target.blur();
  if (isTyping) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("topics").focus();
  } else if (event.key === "f") {
    event.preventDefault();
    byId("filter").focus();
  } else if (event.key === "p" && !event.repeat) {
    byId("pause").click();
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readColours();
  sweep.redraw();
});
/** Redraws when the device pixel ratio changes: on zoom, or when the window moves to another screen. */
function watchPixelRatio() {
  const changed = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
  changed.addEventListener("change", () => (sweep.redraw(), watchPixelRatio()), { once: true });
}
watchPixelRatio();

const query = new URLSearchParams(location.search);
const wanted = Number(query.get("rate") ?? 5);
byId("topics").value = query.get("topics") ?? "";
byId("filter").value = (query.get("filter") ?? "").slice(0, byId("filter").maxLength);
market.filter(byId("filter").value);
chooser.load(query);
byId("rate").value = String(RATES.includes(wanted) ? wanted : 5);
showPatterns(byId("topics").value.trim(), Number(byId("rate").value));
link.connect();
requestAnimationFrame(frame);
