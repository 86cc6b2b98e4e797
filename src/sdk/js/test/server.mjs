// server.mjs: a real server, and a link to it that a test can cut or stop.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { createInterface } from "node:readline";

/** `tickcast serve` on free ports. */
export class Server {
  static async start(options, http = "127.0.0.1:0") {
    const binary = process.env.TICKCAST_BINARY;
    assert.ok(binary, "TICKCAST_BINARY must be the path of the server");
    const words = ["serve", "--tcp", "127.0.0.1:0", "--no-admin", "--no-sim", "--shards", "2", "--http", http, ...options];
    const child = spawn(binary, words, { stdio: ["ignore", "pipe", "pipe"] });
    const server = new Server();
    server.child = child;
    server.exited = once(child, "exit");
    let log = "";
    child.stderr.on("data", (data) => (log += data));
    const [line] = await Promise.race([once(createInterface(child.stdout), "line"), server.exited.then(() => [""])]);
    const address = /http=(\S+)/.exec(line);
    assert.ok(address, `the server does not listen: ${line}\n${log}`);
    server.http = address[1];
    server.port = Number(address[1].split(":").at(-1));
    server.url = `ws://${server.http}/ws`;
    return server;
  }

  async kill() {
    this.child.kill("SIGKILL");
    await this.exited;
  }

  async stop() {
    this.child.kill("SIGTERM");
    await this.exited;
  }
}

/** A TCP proxy in front of a server. */
export class Link {
  #pairs = new Set();
  #isStopped = false;

  static async open(port) {
    const link = new Link();
    link.server = createServer((near) => {
      const far = connect(port, "127.0.0.1");
      const pair = { near, far };
      link.#pairs.add(pair);
      const end = () => {
        near.destroy();
        far.destroy();
        link.#pairs.delete(pair);
      };
      for (const socket of [near, far]) socket.on("error", end).on("close", end);
      near.pipe(far);
      far.on("data", (data) => {
        if (!near.write(data)) far.pause();
      });
      near.on("drain", () => link.#isStopped || far.resume());
      if (link.#isStopped) far.pause();
    });
    link.server.listen(0, "127.0.0.1");
    await once(link.server, "listening");
    link.url = `ws://127.0.0.1:${link.server.address().port}/ws`;
    return link;
  }

  /** Closes every connection without a word. */
  cut() {
    for (const { near } of this.#pairs) near.resetAndDestroy();
  }

  /** Reads nothing from the server until {@link go}. */
  stop() {
    this.#isStopped = true;
    for (const { far } of this.#pairs) far.pause();
  }

  go() {
    this.#isStopped = false;
    for (const { far } of this.#pairs) far.resume();
  }

  close() {
    this.cut();
    this.server.close();
  }
}

/** Waits for the next event of a type that holds. */
export function next(emitter, type, holds = () => true) {
  return new Promise((done) => {
    const stop = emitter.on(type, (event) => {
      if (!holds(event)) return;
      stop();
      done(event);
    });
  });
}

/** Every sequence of a topic must arrive, or be announced, exactly once. */
export class Account {
  delivered = 0;
  conflated = 0;
  gap = 0;
  recovered = [];
  /** Last sequence of the current life. */
  last = 0;
  #epoch = 0;
  #wakes = new Set();

  constructor(subscription, topic) {
    const of = (handle) => (event) => event.topic === topic && this.#handle(handle, event);
    subscription.on("tick", of((tick) => this.#tick(tick)));
    subscription.on("gap", of((range) => this.#range("gap", range)));
    subscription.on("conflated", of((range) => this.#range("conflated", range)));
    subscription.on("recovered", of((answer) => this.recovered.push(answer)));
  }

  get total() {
    return this.delivered + this.conflated + this.gap;
  }

  /** Waits until the topic is at a sequence, in any life. */
  async until(holds) {
    while (!holds(this)) await new Promise((wake) => this.#wakes.add(wake));
  }

  #handle(handle, event) {
    if (event.epoch !== this.#epoch && event.type !== "recovered") [this.#epoch, this.last] = [event.epoch, 0];
    handle(event);
    for (const wake of this.#wakes) wake();
    this.#wakes.clear();
  }

  #tick({ sequence, snapshot }) {
    if (!snapshot) assert.equal(sequence, this.last + 1, "the next tick");
    this.delivered += 1;
    this.last = sequence;
  }

  #range(kind, { from, to, count }) {
    assert.equal(from, this.last + 1, `the next ${kind}`);
    assert.equal(count, to - from);
    this[kind] += count;
    this.last = to - 1;
  }
}
