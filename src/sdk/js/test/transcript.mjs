// transcript.mjs: runs one transcript; tests/transcripts/README.md specifies them.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { World, hex } from "./simulated.mjs";

const folder = new URL("../../../../tests/transcripts/", import.meta.url);

export function read(name) {
  return JSON.parse(readFileSync(new URL(name, folder), "utf8"));
}

export { folder };

/** The bytes of a dump: hexadecimal digits and white space, and text in single quotes. */
function bytesOf(lines) {
  const parts = lines.join(" ").split("'");
  return Buffer.concat(
    parts.map((part, at) => (at % 2 === 1 ? Buffer.from(part, "utf8") : Buffer.from(part.replace(/\s/g, ""), "hex"))),
  );
}

/** An object with the fields that are not undefined. */
const defined = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

/** Fields of the SDK's events that have another name in transcripts. */
const RENAMED = {
  retryInMs: "retry_in_ms",
  timeNs: "ts_ns",
  ingestNs: "ingest_ns",
  sinceNs: "since_ns",
  expiresInS: "expires_in_s",
  roundTripMs: "rtt_ms",
  clockOffsetMs: "offset_ms",
};
const TICK_FIELDS = ["type", "topic", "epoch", "sequence", "timeNs", "ingestNs", "key", "snapshot", "schema"];

function scripted(event, on) {
  const fields = event.type === "tick" ? Object.fromEntries(TICK_FIELDS.map((name) => [name, event[name]])) : event;
  const renamed = Object.entries(fields).map(([name, value]) => [RENAMED[name] ?? name, value]);
  const result = { ...Object.fromEntries(renamed), ...(on === undefined ? {} : { on }) };
  if (event.type === "tick") {
    const { data } = event;
    if (data instanceof Uint8Array) result.data_base64 = Buffer.from(data).toString("base64");
    else result.data = data;
  }
  return result;
}

/** Whether `actual` has everything that `expected` names. */
function assertHas(actual, expected, where) {
  if (typeof expected === "number") {
    const isEqual = typeof actual === "number" && (actual === expected || Math.abs(actual - expected) < 0.001);
    assert.ok(isEqual, `${where}: ${actual} instead of ${expected}`);
  } else {
    assert.deepEqual(actual, expected, where);
  }
}

const CLIENT_EVENTS = ["state", "latency", "expires", "source", "error"];
const SUBSCRIPTION_EVENTS = ["subscription", "tick", "gap", "conflated", "recovered", "stale", "error", "lagged"];
const OPTIONS = ["url", "codec", "name", "token", "get_token", "positions", "many_positions", "save_positions", "offline_queue_max"];

/** Positions in topics named `a.` and their number, padded with zeros. */
function manyPositions({ count, name_bytes: nameBytes, epoch, sequence } = { count: 0 }) {
  const name = (number) => `a.${String(number).padStart(nameBytes - 2, "0")}`;
  return Object.fromEntries(Array.from({ length: count }, (_, number) => [name(number), { epoch, sequence }]));
}

class Run {
  events = [];
  subscriptions = new Map();
  keyed = new Map();
  books = new Map();
  /** Answers to `getToken`, the latest last. */
  asked = [];

  constructor(transcript) {
    const { options, random = [], wall_ms: wallMs = 1_700_000_000_000 } = transcript;
    for (const name of Object.keys(options)) assert.ok(OPTIONS.includes(name), `unknown option ${name}`);
    this.world = new World({ wallMs, random });
    const { actions } = this.world;
    const getToken = (why) => {
      actions.push({ ask_token: why });
      return new Promise((resolve, reject) => this.asked.push({ resolve, reject }));
    };
    const savePositions = (positions) => void actions.push({ save: positions });
    this.client = new this.world.sdk.Client(
      options.url,
      defined({
        codec: options.codec,
        name: options.name ?? "app",
        token: options.token,
        getToken: options.get_token ? getToken : undefined,
        positions: { ...options.positions, ...manyPositions(options.many_positions) },
        savePositions: options.save_positions ? savePositions : undefined,
        offlineQueueMax: options.offline_queue_max,
      }),
    );
    for (const type of CLIENT_EVENTS) this.client.on(type, (event) => this.events.push(scripted(event)));
    // Transcripts connect by themselves.
    this.client.disconnect();
  }

  async step(step) {
    const [name] = Object.keys(step).filter((name) => !["client", "events", "throws", "about"].includes(name));
    const input = this[`in_${name}`];
    assert.ok(input !== undefined, `unknown input ${name}`);
    await input.call(this, step[name], step);
    await this.world.settle();
    assert.deepEqual(this.world.actions.splice(0), (step.client ?? []).map(expectedAction));
    const events = this.events.splice(0);
    const expected = step.events ?? [];
    assert.deepEqual(events.map(({ type, on }) => ({ type, on })), expected.map(({ type, on }) => ({ type, on })), JSON.stringify(events));
    expected.forEach((event, at) => {
      for (const [field, value] of Object.entries(event)) assertHas(events[at][field], value, `${event.type}.${field}`);
    });
  }

  async in_call([name, ...values], { throws = false }) {
    const call = this[`call_${name}`];
    assert.ok(call !== undefined, `unknown call ${name}`);
    if (throws) assert.throws(() => call.apply(this, values));
    else call.apply(this, values);
  }
  in_open(subprotocol) {
    return this.world.open(subprotocol);
  }
  in_server(value) {
    return this.world.receive(JSON.stringify(value));
  }
  in_server_text(text) {
    return this.world.receive(text);
  }
  in_server_frames(lines) {
    const bytes = bytesOf(lines);
    return this.world.receive(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  }
  in_closed([code, reason]) {
    return this.world.close(code, reason);
  }
  in_token(token) {
    this.asked.pop().resolve(token);
  }
  in_token_failed(reason) {
    this.asked.pop().reject(new Error(reason));
  }
  in_after_ms(ms) {
    return this.world.advance(ms);
  }
  in_late_ms(ms) {
    return this.world.sleep(ms);
  }
  in_check(checks) {
    for (const [name, expected] of Object.entries(checks)) {
      const check = this[`check_${name}`];
      assert.ok(check !== undefined, `unknown check ${name}`);
      check.call(this, expected);
    }
  }

  call_connect() {
    this.client.connect();
  }
  call_disconnect() {
    this.client.disconnect();
  }
  call_subscribe(pattern, { from, policy, max_rate: maxRate, ...others }) {
    assert.deepEqual(others, {});
    // The first event comes before anyone can listen.
    const subscription = this.client.subscribe(pattern, defined({ from, policy, maxRate }));
    this.events.push({ type: "subscription", on: pattern, state: subscription.state, code: 0 });
    for (const type of SUBSCRIPTION_EVENTS) {
      subscription.on(type, (event) => this.events.push(scripted(event, pattern)));
    }
    this.subscriptions.set(pattern, subscription);
  }
  call_unsubscribe(pattern) {
    this.subscriptions.get(pattern).unsubscribe();
  }
  call_set_rate(pattern, rate) {
    this.subscriptions.get(pattern).setRate(rate);
  }
  call_set_policy(pattern, policy) {
    this.subscriptions.get(pattern).setPolicy(policy);
  }
  call_publish(name, topic, { data, data_base64: base64, key, schema, ts_ns: timeNs, message_id: messageId, timeout_ms: timeoutMs, ...others }) {
    assert.deepEqual(others, {});
    const payload = base64 === undefined ? data : new Uint8Array(Buffer.from(base64, "base64"));
    const published = this.client.publish(topic, payload, defined({ key, schema, timeNs, messageId, timeoutMs }));
    published.then(
      (result) => this.events.push({ type: "published", name, ...result }),
      (error) => {
        assert.ok(error instanceof this.world.sdk.PublishError, error);
        const { outcome, code, message: reason } = error;
        this.events.push({ type: "publish_failed", name, outcome, code, reason });
      },
    );
  }
  call_set_token(token) {
    this.client.setToken(token);
  }
  call_keyed_view(pattern, { entries_max: entriesMax }) {
    this.keyed.set(pattern, this.subscriptions.get(pattern).keyed(defined({ entriesMax })));
  }
  call_book_view(pattern) {
    this.books.set(pattern, this.subscriptions.get(pattern).book());
  }

  check_state(expected) {
    assert.equal(this.client.state, expected);
  }
  check_subscription(expected) {
    for (const [pattern, state] of Object.entries(expected)) {
      assert.equal(this.subscriptions.get(pattern).state, state, pattern);
    }
  }
  check_positions(expected) {
    assert.deepEqual(this.client.positions, expected);
  }
  check_keyed(expected) {
    for (const [pattern, topics] of Object.entries(expected)) {
      const view = this.keyed.get(pattern);
      assert.deepEqual(Object.fromEntries(view.topics().map((topic) => [topic, Object.fromEntries(view.entries(topic))])), topics);
    }
  }
  check_complete(expected) {
    for (const [pattern, topics] of Object.entries(expected)) {
      for (const [topic, isComplete] of Object.entries(topics)) {
        assert.equal(this.keyed.get(pattern).complete(topic), isComplete, topic);
      }
    }
  }
  check_book(expected) {
    for (const [pattern, topics] of Object.entries(expected)) {
      for (const [topic, { live, bids, asks }] of Object.entries(topics)) {
        const book = this.books.get(pattern).get(topic);
        assert.deepEqual({ live: book.live, bids: book.bids, asks: book.asks }, { live, bids, asks }, topic);
      }
    }
  }
}

/** A step as often as it says, with the number of each repetition in place of its marks. */
function repeated([where, { repeat = 1, ...step }]) {
  return Array.from({ length: repeat }, (_, number) => {
    const text = JSON.stringify(step).replace(/"#\+(\d+)"/g, (_, added) => number + Number(added));
    return [where, JSON.parse(text.replaceAll('"#"', `"${number}"`))];
  });
}

function expectedAction(action) {
  return "send_frames" in action ? { sendFrames: hex(bytesOf(action.send_frames)) } : action;
}

/** Runs a transcript; throws at the first step that does not hold. */
export async function run(transcript) {
  const run = new Run(transcript);
  const steps = [
    ...(transcript.given ?? []).flatMap((name) => read(`given/${name}.json`).steps.map((step, at) => [`given/${name}[${at}]`, step])),
    ...transcript.steps.map((step, at) => [`steps[${at}]`, step]),
  ];
  for (const [where, step] of steps.flatMap(repeated)) {
    try {
      await run.step(step);
    } catch (error) {
      error.message = `${where} ${JSON.stringify(step).slice(0, 200)}: ${error.message}`;
      throw error;
    }
  }
  assert.equal(run.world.randomLeft, 0, "the client took fewer random numbers than the script has");
}
