// main.js: puts the page together: what is subscribed to, who takes which tick, and what is told of ticks that were
// missed while the connection was lost, the page paused, hidden or asleep.

import { Link } from "./link.js";
import { Market, ROWS_MAX } from "./market.js";
import { Sparkline, Stats, bytes, count, duration, many, ms, rate, wallMs } from "./stats.js";
import { Sweep } from "./sweep.js";
import { Table } from "./table.js";
import { Wave } from "./wave.js";
import { FLAG_SNAPSHOT, FROM, KIND, POLICY, matches, subscribe, unsubscribe, update } from "./wire.js";

const WAVE = "ecg.wave";
const INFO = "ecg.info";
const PARAMS = "ecg.params";
const HEART = [INFO, PARAMS, WAVE];
/** Hidden for so long, the page asks for nothing until somebody looks again. */
const HIDDEN_MS = 10_000;
/** After coming back, what was missed is told when so long has passed. */
const SETTLE_MS = 1_500;
/** Without a tick for so long, latency is measured on another topic. */
const PROBE_QUIET_MS = 5_000;
/** A second that took longer: this page was asleep. */
const SECOND_MS_MAX = 4_000;
const EVENTS_MAX = 12;
const FAILURES_MAX = 16;
const RATES = [0, 1, 5, 20];

const at = (id) => document.getElementById(id);
const put = (id, text) => {
  const element = at(id);
  if (element.textContent !== text) element.textContent = text;
};

const colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["trace", "beat", "line", "area", "grid-fine", "grid-coarse", "gap"];
  for (const name of names) colours[name] = style.getPropertyValue(`--${name}`).trim();
}
readColours();

const stats = new Stats();
const market = new Market();
const wave = new Wave();
const table = new Table(at("table"), market);
const sweep = new Sweep(at("grid"), at("wave"), wave, () => ({
  trace: colours.trace,
  beat: colours.beat,
  fine: colours["grid-fine"],
  coarse: colours["grid-coarse"],
  lost: colours.gap,
}));
const curve = (id) => new Sparkline(at(id), () => ({ line: colours.line, area: colours.area }));
const latencyCurve = curve("latency-curve");
const ticksCurve = curve("ticks-curve");
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

/** What the table shows. */
let patterns = [];
let rateMax = 5;
/** The life of the server that sequences are of; 0n before the first welcome. */
let epoch = 0n;
/** Topics of this connection by number: `{name, row, isEcg}`. */
let topics = new Map();
/** Patterns that the server has been asked for on this connection, and the requests that asked. */
const asked = new Map();
let requests = 0;
/** `{why, since}` while nothing comes. */
let away = null;
/** Nothing is asked for: `paused` by a person, `hidden`, or neither. */
let suspended = "";
let hideTimer = 0;
let state = "connecting";
let retryAt = 0;
let reconnects = 0;
/** The wave's place: the next sequence, 0: none; up to which one ticks are of the past; and what was made up for. */
const place = { next: 0, past: 0, madeUp: 0 };
/** Batches that were lost while the table did not list the wave, and so did not count them. */
let lostUnlisted = 0;
/** The topic that latency is measured on where there is no wave: taken whole, as ticks at a pace wait for their turn. */
let probe = "";
/** When the newest tick of it came, and whether the server has said that it comes whole. */
let probeAt = 0;
let isProbeWhole = false;

const link = new Link(socketAddress(), { state: onState, welcome: onWelcome, frame: onFrame, woke: onWoke });

function socketAddress() {
  const url = new URL("ws", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

// What is subscribed to.

function ask(pattern, options) {
  if (asked.has(pattern)) return;
  requests += 1;
  asked.set(pattern, requests);
  link.send(subscribe(requests, pattern, options));
}

function askForAll() {
  if (suspended !== "") return;
  ask(INFO, { from: FROM.latest, policy: POLICY.conflate });
  ask(PARAMS, { from: FROM.latest, policy: POLICY.conflate });
  // With sequence 0: as much as the server still has, so that the screen is not empty.
  ask(WAVE, { place: { epoch, sequence: Math.max(0, place.next - 1) }, policy: POLICY.drop });
  for (const pattern of patterns) ask(pattern, { from: FROM.latest, policy: POLICY.conflate, rate: rateMax });
}

/** Finds a topic to measure latency on: the slowest that has a tick a second, lest it be a burden. */
function askForProbe() {
  if (probe !== "" && (wave.isFlowing || performance.now() - probeAt > PROBE_QUIET_MS)) endProbe();
  if (state !== "live" || suspended !== "" || probe !== "" || rateMax === 0 || wave.isFlowing) return;
  const fit = [...market.rows.values()].filter((row) => row.rate >= 1 && !HEART.includes(row.name));
  if (fit.length === 0) return;
  probe = fit.reduce((slowest, row) => (row.rate < slowest.rate ? row : slowest)).name;
  probeAt = performance.now();
  isProbeWhole = false;
  if (asked.has(probe)) pace(probe, 0);
  else ask(probe, { policy: POLICY.conflate });
}

function endProbe() {
  const name = probe;
  probe = "";
  if (patterns.includes(name)) pace(name, rateMax);
  else stopAsking([name]);
}

/** Another pace for what is subscribed to by its name. */
function pace(pattern, ticksASecond) {
  requests += 1;
  asked.set(pattern, requests);
  link.send(update(requests, pattern, { policy: POLICY.conflate, rate: ticksASecond }));
}

/** Whether a topic's ticks come as they are published. */
function isMeasured(name) {
  if (wave.isFlowing) return name === WAVE;
  return rateMax === 0 || (isProbeWhole && name === probe);
}

function stopAsking(stopped) {
  probe = "";
  for (const pattern of stopped) {
    if (!asked.delete(pattern)) continue;
    requests += 1;
    link.send(unsubscribe(requests, pattern));
  }
}

/** Whether a topic is one of the table's: those of a heart are only if they were asked for by name. */
function isListed(name) {
  const matching = patterns.filter((pattern) => matches(pattern, name));
  return matching.some((pattern) => !name.startsWith("ecg.") || pattern.startsWith("ecg"));
}

function topicOf(name) {
  return { name, row: isListed(name) ? market.row(name) : null, isEcg: name.startsWith("ecg.") };
}

function choose(text, ticksASecond) {
  stopAsking([...asked.keys()].filter((pattern) => !HEART.includes(pattern)));
  const typed = text.split(",").map((pattern) => pattern.trim());
  patterns = typed.some((pattern) => pattern !== "") ? typed.filter((pattern) => pattern !== "") : [">"];
  rateMax = ticksASecond;
  at("topics-error").hidden = true;
  market.clear();
  for (const [id, { name }] of topics) topics.set(id, topicOf(name));
  if (state === "live") askForAll();
}

// What comes.

function onState(next, detail) {
  if (state === "live" && next !== "live") leave("lost");
  state = next;
  document.body.dataset.state = next;
  const texts = { connecting: "Connecting", live: "Live", waiting: "No connection", refused: "Closed by the server" };
  put("state-text", next === "live" && suspended === "paused" ? "Paused" : texts[next]);
  retryAt = detail.at ?? 0;
  // At the start nothing went wrong yet.
  at("banner").hidden = next === "live" || (next === "connecting" && at("banner-text").dataset.why === undefined);
  if (next === "waiting" || next === "refused") {
    asked.clear();
    probe = "";
    topics = new Map();
    at("banner-text").dataset.why = `${detail.reason} (${detail.code})`;
  }
  if (next === "refused") tell(`The server closed the connection and does not want it back: ${detail.reason} (${detail.code})`);
  countDown();
}

function onWelcome(welcome) {
  const isNewLife = epoch !== 0n && welcome.epoch !== epoch;
  if (epoch === 0n) tell(`Connected to ${welcome.server}.`);
  else reconnects += 1;
  if (isNewLife) {
    wave.clear();
    Object.assign(place, { next: 0, past: 0, madeUp: 0 });
  }
  epoch = welcome.epoch;
  stats.anew();
  put("server", welcome.server);
  at("server").title = `${welcome.server}, session ${welcome.session.toString(16)}`;
  put("reconnects", count(reconnects));
  document.body.dataset.reconnects = reconnects;
  if (away !== null) away.isNewLife ||= isNewLife;
  if (suspended === "") comeBack();
}

function onFrame(frame, messageBytes) {
  stats.bytes(messageBytes);
  switch (frame.kind) {
    case KIND.tick:
      return onTick(frame);
    case KIND.subscribed:
      if (frame.topicId !== 0) topics.set(frame.topicId, topicOf(frame.text()));
      else if (frame.u32(8) === asked.get(probe)) isProbeWhole = true;
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
  const isLive = (frame.flags & FLAG_SNAPSHOT) === 0;
  let isOld = !isLive;
  if (topic.name === probe) probeAt = performance.now();
  if (topic.name === WAVE) {
    isOld ||= frame.sequence <= place.past;
    onBatch(frame, topic.row !== null);
  } else if (topic.isEcg) {
    onHeart(topic.name, frame, isLive);
  }
  stats.tick(arrivalMs, frame.u64(0), frame.u64(8), !isOld && isMeasured(topic.name));
  if (topic.row !== null) market.tick(topic.row, frame);
}

function onBatch(frame, isListed) {
  const { sequence } = frame;
  // The newest stand for what the server no longer has.
  const isExplained = (frame.flags & FLAG_SNAPSHOT) !== 0;
  if (place.next !== 0 && sequence > place.next) lose(sequence - place.next, isExplained, isListed);
  if (sequence < place.next) return;
  if (sequence <= place.past) place.madeUp += 1;
  place.next = sequence + 1;
  wave.take(frame.u64(0) / 1e6, frame.u64(8) / 1e6, frame.floats());
}

/** The table counts its own. */
function lose(batches, isExplained, isListed) {
  wave.lost += batches;
  if (isListed) return;
  lostUnlisted += batches;
  if (!isExplained) market.unannounced += batches;
}

function onHeart(name, frame, isLive) {
  try {
    if (name === INFO) {
      wave.takeInfo(frame.text());
    } else if (name === PARAMS && wave.takeParams(frame.text()) !== null && isLive && !stillness.matches) {
      at("pulse-mark").animate([{ transform: "scale(1.35)" }, { transform: "scale(1)" }], { duration: 260, easing: "ease-out" });
    }
  } catch (error) {
    // Anyone may publish there.
    console.warn(name, error);
  }
}

function onSkipped(frame) {
  const topic = topics.get(frame.topicId);
  if (topic === undefined) return;
  const [from, to] = [frame.u64(0), frame.u64(8)];
  if (topic.name === WAVE) {
    // What was before this page's first batch is no loss of its.
    const isListed = topic.row !== null;
    if (place.next !== 0 && from > place.next) lose(from - place.next, away !== null, isListed);
    if (place.next !== 0 && to > place.next) lose(to - Math.max(from, place.next), true, isListed);
    place.next = place.next === 0 ? 0 : Math.max(place.next, to);
  }
  if (topic.row !== null) market.skip(topic.row, frame.kind === KIND.gap, from, to);
}

function onRecovered(sequence, isRecovered) {
  place.past = isRecovered ? sequence : 0;
}

function onError(request, code, text) {
  const [pattern] = [...asked].find(([, number]) => number === request) ?? [];
  if (pattern !== undefined) asked.delete(pattern);
  if (pattern !== undefined && patterns.includes(pattern)) {
    put("topics-error", `${text} (${code})`);
    at("topics-error").hidden = false;
  } else {
    tell(`The server answers: ${text} (${code})`);
  }
}

// Being away, and coming back.

function leave(why) {
  if (away !== null && !away.back) return;
  if (away !== null) tellOfAbsence(away);
  // A page that was given up while it slept has been away since it fell asleep.
  const { since, before } = asleep ?? { since: Date.now(), before: counts() };
  asleep = null;
  const skipped = counts().skipped - before.skipped;
  away = { why, since, isNewLife: false, skipped, lost: before.lost, hadWave: wave.isKnown };
  place.madeUp = 0;
  market.leave();
}

function comeBack() {
  if (away !== null && !away.back) {
    away.back = Date.now();
    market.return(away.isNewLife);
    setTimeout(tellOfAbsence, SETTLE_MS, away);
  }
  askForAll();
}

function tellOfAbsence(absence) {
  if (away !== absence) return;
  away = null;
  market.measureAnew();
  const before = { lost: "Back after", paused: "Paused for", hidden: "Hidden for" }[absence.why];
  const parts = [`${before} ${duration(absence.back - absence.since)}.`];
  if (absence.isNewLife) {
    market.keep(new Set([...topics.values()].map(({ name }) => name)));
    parts.push("The server was started anew: sequences begin at 1, and what was missed of those before is not known.");
  } else {
    const ticks = market.missed + absence.skipped;
    parts.push(
      ticks === 0 ? "No tick of the table was missed." : `${many(ticks, "tick")} of the table skipped: the newest are shown.`,
    );
    const lost = wave.lost - absence.lost;
    if (absence.hadWave) {
      parts.push(
        `Wave: ${many(place.madeUp, "batch", "batches")} made up for, ${lost === 0 ? "none" : count(lost)} lost.`,
      );
    }
  }
  tell(parts.join(" "));
}

function suspend(why) {
  if (suspended !== "") return;
  suspended = why;
  leave(why);
  // The wave last: until then `>` would be all that takes it, at a pace.
  stopAsking([...asked.keys()].reverse());
  showPause();
}

function resume() {
  suspended = "";
  showPause();
  if (state === "live") comeBack();
}

function showPause() {
  const isPaused = suspended === "paused";
  const button = at("pause");
  button.classList.toggle("on", isPaused);
  button.textContent = isPaused ? "Go on" : "Pause";
  if (state === "live") put("state-text", isPaused ? "Paused" : "Live");
}

/** What has not come so far: ticks of the table, and batches of the wave. */
const counts = () => ({ skipped: market.conflated + market.gaps, lost: wave.lost });
/** The same a second ago, or before this page fell asleep. */
let counted = counts();
let lastSecond = performance.now();
let lastSecondWall = Date.now();
/** `{since, before}`: this page has just slept, and what it missed is still coming in. */
let asleep = null;

function onWoke(sleptMs) {
  // What was measured before says nothing of now: the clocks and the network may be others.
  stats.anew();
  if (suspended !== "" || away !== null || document.hidden) return;
  const slept = (asleep = { since: Date.now() - sleptMs, before: counted });
  market.measureAnew();
  setTimeout(() => {
    if (asleep !== slept) return;
    asleep = null;
    market.measureAnew();
    const { skipped, lost } = counts();
    const ticks = `${many(skipped - slept.before.skipped, "tick")} of the table skipped`;
    const batches = `${many(lost - slept.before.lost, "batch", "batches")} of the wave lost`;
    tell(`This page slept for ${duration(sleptMs)}: ${ticks}, ${batches}.`);
  }, SETTLE_MS);
}

function onVisibility() {
  clearTimeout(hideTimer);
  if (document.hidden) hideTimer = setTimeout(suspend, HIDDEN_MS, "hidden");
  else if (suspended === "hidden") resume();
}
document.addEventListener("visibilitychange", onVisibility);
onVisibility();

// What is shown.

function tell(text) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  const now = new Date();
  time.dateTime = now.toISOString();
  time.textContent = now.toLocaleTimeString("en-GB");
  item.append(time, text);
  const events = at("events");
  events.prepend(item);
  while (events.children.length > EVENTS_MAX) events.lastElementChild.remove();
}

function countDown() {
  if (at("banner").hidden) return;
  const why = at("banner-text").dataset.why ?? "";
  const left = Math.max(0, Math.ceil((retryAt - performance.now()) / 1e3));
  const next = { waiting: left > 0 ? `Next attempt in ${left} s.` : "Trying again.", connecting: "Trying again.", refused: "" };
  put("banner-text", `Disconnected: ${why}. ${next[state] ?? ""} What is shown is from before.`);
}

function showHeart(seconds) {
  at("heart").hidden = !wave.isKnown && wave.batches === 0;
  if (at("heart").hidden) return;
  const { info } = wave;
  if (info !== null) put("lead", `${info.signal}${info.record === info.signal ? "" : ` of record ${info.record}`}, ${info.fs} Hz`);
  at("pulse").dataset.known = wave.beats.length > 0 || !Number.isNaN(wave.bpm) ? "yes" : "no";
  put("bpm", Number.isNaN(wave.bpm) ? "–" : String(Math.round(wave.bpm)));
  put("scale", sweep.scale);
  const hint = "For beats, run: tickcast process ecg";
  put("beat", wave.beats.length === 0 ? hint : Number.isNaN(wave.rrMs) ? "" : `Last interval ${Math.round(wave.rrMs)} ms`);
  const strange = wave.strange === 0 ? "" : `, ${count(wave.strange)} of another time left out`;
  put("batches", (wave.lost === 0 ? "No batch lost" : `${many(wave.lost, "batch", "batches")} lost`) + strange);
  const isFlat = !wave.isFlowing;
  at("flat").hidden = !isFlat;
  put("flat", suspended !== "" ? "Paused" : state === "live" ? "No samples come" : "No connection");
  const fps = Math.round(sweep.frames / seconds);
  document.body.dataset.fps = isFlat ? 0 : fps;
  put("frames", isFlat ? "" : many(fps, "frame/s", "frames/s"));
}

function showMarket() {
  const { size } = market.rows;
  at("empty").hidden = size > 0;
  const published = [...market.rows.values()].reduce((sum, row) => sum + row.rate, 0);
  const listed = market.unlisted > 0 ? `${count(ROWS_MAX)} of ${count(size + market.unlisted)}: ask for fewer` : count(size);
  put("listed", size === 0 ? "" : listed);
  const nothing = patterns.includes(">") ? `Nothing has come yet. Try: tickcast pub my.topic '{"value":1}'` : `Nothing has come of ${patterns.join(", ")} yet.`;
  put("empty", state === "live" && suspended === "" ? nothing : "Nothing is shown.");
  put("conflated", count(market.conflated));
  const lost = market.gaps + lostUnlisted;
  put("lost", count(lost));
  at("lost").classList.toggle("some", lost > 0);
  put("unannounced", count(market.unannounced));
  at("unannounced").classList.toggle("some", market.unannounced > 0);
  return published;
}

function showNumbers(published) {
  put("latency", ms(stats.p50));
  const measured = wave.isFlowing ? WAVE : probe || "all topics";
  put("latency-more", Number.isNaN(stats.p99) ? "of the last second" : `99 % below ${ms(stats.p99)}\non ${measured}`);
  const ticks = stats.ticksPerSecond.at(-1);
  put("ticks", Number.isNaN(ticks) ? "–" : rate(ticks));
  put("ticks-more", `${bytes(stats.bytesPerSecond)}/s\npublished: ${rate(published)}`);
  put("round-trip", ms(link.roundTripMs));
  const offset = stats.offsetMs;
  put("offset", Number.isNaN(offset) ? "–" : `${offset < 0 ? "−" : "+"}${ms(Math.abs(offset))}`);
  latencyCurve.draw(stats.latency);
  ticksCurve.draw(stats.ticksPerSecond);
}

/** What went wrong in one part, told once: the others go on. */
const failed = new Set();
function attempt(part) {
  try {
    part();
  } catch (error) {
    if (failed.has(error.message)) return;
    if (failed.size < FAILURES_MAX) failed.add(error.message);
    console.error(error);
  }
}

setInterval(() => {
  link.notice();
  const [now, wall] = [performance.now(), Date.now()];
  const elapsed = now - lastSecond;
  // Of before a sleep: what was counted then is still to be told.
  if (Math.max(elapsed, wall - lastSecondWall) < SECOND_MS_MAX) counted = counts();
  lastSecond = now;
  lastSecondWall = wall;
  attempt(() => market.second(now));
  attempt(() => stats.second(link.shortestRoundTripMs));
  attempt(askForProbe);
  attempt(countDown);
  if (document.hidden) return;
  attempt(() => showHeart(elapsed / 1e3));
  sweep.frames = 0;
  attempt(() => showNumbers(showMarket()));
  document.body.dataset.rows = market.rows.size;
}, 1_000);

function frame(now) {
  requestAnimationFrame(frame);
  if (!at("heart").hidden) attempt(() => sweep.draw(now));
  attempt(() => table.draw());
}

// What people do.

at("choose").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("topics").value.trim();
  const ticksASecond = Number(at("rate").value);
  const query = new URLSearchParams();
  if (text !== "") query.set("topics", text);
  if (ticksASecond !== 5) query.set("rate", ticksASecond);
  history.replaceState(null, "", `${query}` === "" ? location.pathname : `?${query}`);
  choose(text, ticksASecond);
});
at("rate").addEventListener("change", () => at("choose").requestSubmit());
at("pause").addEventListener("click", () => (suspended === "paused" ? resume() : suspend("paused")));
at("retry").addEventListener("click", () => link.retry());
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape" && isTyping) event.target.blur();
  if (isTyping) return;
  if (event.key === "/") {
    event.preventDefault();
    at("topics").focus();
  } else if (event.key === "p" && !event.repeat) {
    at("pause").click();
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readColours();
  sweep.redraw();
});
/** The size of a pixel changes with the zoom, and from one screen to another. */
function watchPixels() {
  const changed = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
  changed.addEventListener("change", () => (sweep.redraw(), watchPixels()), { once: true });
}
watchPixels();

const query = new URLSearchParams(location.search);
const wanted = Number(query.get("rate") ?? 5);
at("topics").value = query.get("topics") ?? "";
at("rate").value = String(RATES.includes(wanted) ? wanted : 5);
choose(at("topics").value, Number(at("rate").value));
link.connect();
requestAnimationFrame(frame);
