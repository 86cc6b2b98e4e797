// The conformance tests in Bun and Deno, which run Node's tests. TICKCAST_BINARY is the path of the server; npm ci in tests/clients installs both.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../", import.meta.url));
const modules = fileURLToPath(new URL("../../../../tests/clients/node_modules/", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "tickcast-runtimes-"));
after(() => rmSync(folder, { recursive: true }));

/** Tests of the file that both run. */
const CONFORMANCE = "./test/conformance.test.mjs";
const CONFORMANCE_TESTS = 11;
/** Bun's limit for one test, which has none in Node. */
const BUN_TEST_TIMEOUT_MS = 600_000;

/** The program of the package for this machine: npm installs no other, and its scripts do not run. */
function program(scope, ...path) {
  const found = readdirSync(join(modules, scope)).map((name) => join(modules, scope, name, ...path));
  return found.find((file) => existsSync(file));
}

/** Runs a program to its end; returns whether it was successful, and what it said. */
async function run(file, words) {
  const env = { ...process.env, DENO_DIR: folder, DENO_NO_UPDATE_CHECK: "1", DO_NOT_TRACK: "1", NO_COLOR: "1" };
  const child = spawn(file, words, { cwd: root, env, stdio: ["ignore", "pipe", "pipe"] });
  let said = "";
  for (const output of [child.stdout, child.stderr]) output.on("data", (data) => (said += data));
  const [status] = await once(child, "close");
  return { status, said };
}

// Most of their time is spent waiting, so both run at once.
const runs = {
  Bun: run(program("@oven", "bin", "bun"), ["test", "--timeout", String(BUN_TEST_TIMEOUT_MS), CONFORMANCE]),
  Deno: run(program("@deno", "deno"), ["test", "--allow-all", "--no-check", "--no-lock", CONFORMANCE]),
};
for (const [name, ran] of Object.entries(runs)) {
  test(`${name}: the SDK survives cuts, restarts, slow links and tokens that expire`, async () => {
    const { status, said } = await ran;
    const passed = Number(/(\d+) pass(ed)?\b/.exec(said)?.[1] ?? 0);
    assert.deepEqual([status, passed], [0, CONFORMANCE_TESTS], said);
  });
}
