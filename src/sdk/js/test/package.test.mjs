// The package: the committed bundle is what the build makes, the packed files are the intended ones, and both module systems load.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { INTERNAL } from "../internal.mjs";

const root = fileURLToPath(new URL("../", import.meta.url));
const read = (...path) => readFileSync(join(root, ...path), "utf8");
const run = (program, words, cwd) => execFileSync(program, words, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });

/** Longest bundle, compressed. The server's limit is SDK_GZIP_BYTES_MAX. */
const BUNDLE_GZIP_BYTES_MAX = 12 << 10;

/** A folder with a copy of what is committed, and the package that `npm pack` makes of it, installed. */
let folder;
let installed;
before(() => {
  folder = mkdtempSync(join(tmpdir(), "tickcast-package-"));
  const sdk = join(folder, "checkout/src/sdk/js");
  const isCommitted = (path) => !/[\\/](node_modules|dist|LICENSE)$/.test(path);
  cpSync(root, sdk, { recursive: true, filter: isCommitted });
  rmSync(join(sdk, "bundle"), { recursive: true });
  copyFileSync(join(root, "../../../LICENSE"), join(folder, "checkout/LICENSE"));
  symlinkSync(join(root, "node_modules"), join(sdk, "node_modules"));
  run("npm", ["pack", "--offline", "--pack-destination", folder], sdk);
  const [packed] = readdirSync(folder).filter((name) => name.endsWith(".tgz"));
  installed = join(folder, "node_modules/tickcast");
  mkdirSync(installed, { recursive: true });
  run("tar", ["-xzf", join(folder, packed), "--strip-components=1", "-C", installed], folder);
});
after(() => rmSync(folder, { recursive: true }));
const built = (name) => readFileSync(join(installed, "dist", name), "utf8");
const rebuilt = (name) => readFileSync(join(folder, "checkout/src/sdk/js", name), "utf8");

test("the committed bundle and reference are what the build makes, and the bundle is small", () => {
  assert.ok(read("API.md") === rebuilt("API.md"), "run npm run build in src/sdk/js and commit API.md");
  const bundle = read("bundle/tickcast.js");
  assert.ok(bundle === rebuilt("bundle/tickcast.js"), "run npm run build in src/sdk/js and commit bundle/tickcast.js");
  const bytes = gzipSync(bundle, { level: 9 }).length;
  assert.ok(bytes <= BUNDLE_GZIP_BYTES_MAX, `${bytes} bytes`);
});

test("nothing is evaluated, and nothing is needed from elsewhere", () => {
  const { dependencies, peerDependencies, optionalDependencies } = JSON.parse(read("package.json"));
  assert.deepEqual([dependencies, peerDependencies, optionalDependencies], [undefined, undefined, undefined]);
  for (const name of ["tickcast.mjs", "tickcast.cjs", "tickcast.js"]) {
    assert.doesNotMatch(built(name), /\beval\s*\(|new Function|\brequire\s*\(|^import\s/m, name);
  }
});

test("npm pack makes the package from a clean checkout: builds, types, README and licence", () => {
  const paths = readdirSync(installed, { recursive: true }).filter((path) => !/(^|\/)(dist|core)$/.test(path));
  const isExpected = (path) =>
    /^(package\.json|LICENSE|README\.md|API\.md|dist\/tickcast\.(mjs|cjs|js)|dist\/(core\/)?[a-z]+\.d\.c?ts)$/.test(path);
  assert.deepEqual(paths.filter((path) => !isExpected(path)), []);
  for (const path of ["dist/tickcast.mjs", "dist/tickcast.cjs", "dist/tickcast.js", "dist/index.d.ts", "dist/index.d.cts"]) {
    assert.ok(paths.includes(path), path);
  }
  assert.equal(readFileSync(join(installed, "LICENSE"), "utf8"), readFileSync(join(root, "../../../LICENSE"), "utf8"));
  // The package does not say where its repository is, so its links must not lead there.
  const links = [...read("README.md").matchAll(/\]\(([^)#]+)/g)].map(([, link]) => link).filter((link) => !link.startsWith("https:"));
  assert.deepEqual(links.filter((link) => !paths.includes(link)), []);
});

test("the bundle shortens no name that the reference has", () => {
  const declared = new Set([...read("API.md").matchAll(/^ +(?:readonly |get |\*?)?(\w+)\??[(:<]/gm)].map(([, name]) => name));
  assert.ok(declared.has("positions") && declared.has("roundTripMs"));
  assert.deepEqual(INTERNAL.filter((name) => declared.has(name)), []);
});

test("import and require both find it, with the same exports", () => {
  const names = "console.log(Object.keys(sdk).sort().join())";
  writeFileSync(join(folder, "module.mjs"), `import * as sdk from "tickcast"; ${names}`);
  writeFileSync(join(folder, "common.cjs"), `const sdk = require("tickcast"); ${names}`);
  const [module, common] = ["module.mjs", "common.cjs"].map((file) => run(process.execPath, [file], folder));
  assert.equal(module, common);
  assert.equal(module.trim(), "BookView,Client,ClosedError,KeyedView,PublishError,Subscription,matches");
});

test("a TypeScript program of either module system compiles against the types", () => {
  const program = `
    import { Client, type Tick } from "tickcast";
    const client = new Client("wss://host/ws", { getToken: async (why) => why, codec: "native", webSocket: WebSocket });
    const prices = client.subscribe("prices.>", { from: "latest", policy: "conflate", maxRate: 5 });
    prices.on("gap", ({ topic, from, to, count }) => console.log(topic, from + to + count));
    client.on("latency", ({ clockOffsetMs }) => console.log(clockOffsetMs === null ? 0 : clockOffsetMs.toFixed()));
    export async function run(render: (tick: Tick) => void): Promise<void> {
      for await (const tick of prices) render(tick);
      for await (const event of prices.events()) if (event.type === "recovered") console.log(event.reason);
      const { sequence }: { sequence: number } = await client.publish("t", { p: 1 }, { key: 7n });
      console.log(sequence, prices.book().get("t")?.bids[0]?.[0], prices.keyed().get("t", 7));
    }
  `;
  compile(program, { lib: ["ES2023", "DOM"] });
});

test("the types need no DOM, and take the WebSocket class of the package ws", () => {
  compile('import { Client } from "tickcast"; export const client = new Client("ws://host/ws");', { lib: ["ES2023"] });
  for (const name of ["@types", "undici-types"]) symlinkSync(join(root, "node_modules", name), join(folder, "node_modules", name));
  const program = `
    import { Client, type WebSocketClass } from "tickcast";
    import { WebSocket } from "ws";
    export const webSocket: WebSocketClass = WebSocket;
    export const client = new Client("ws://host/ws", { webSocket: WebSocket });
  `;
  // Only the types of Node need to be taken as they are.
  compile(program, { lib: ["ES2023"], types: ["node"], skipLibCheck: true });
});

/** Compiles a program as a module of either system; fails with what the compiler says. */
function compile(program, options) {
  const compilerOptions = { module: "NodeNext", target: "ES2022", types: [], strict: true, noEmit: true, ...options };
  const files = ["program.mts", "program.cts"];
  for (const file of files) writeFileSync(join(folder, file), program);
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, files }));
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  assert.ok(existsSync(tsc), "npm ci in src/sdk/js installs it");
  try {
    run(process.execPath, [tsc, "-p", folder], folder);
  } catch (error) {
    assert.fail(error.stdout);
  }
}
