// The package: the committed bundle is what the build makes, the packed files are the intended ones, and both module systems load.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const root = fileURLToPath(new URL("../", import.meta.url));
const read = (...path) => readFileSync(join(root, ...path), "utf8");
const run = (program, words, cwd) => execFileSync(program, words, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });

/** Longest bundle, compressed. The server's limit is SDK_GZIP_BYTES_MAX. */
const BUNDLE_GZIP_BYTES_MAX = 12 << 10;

/** A folder with the installed package. */
let folder;
before(() => {
  folder = mkdtempSync(join(tmpdir(), "tickcast-package-"));
  const installed = join(folder, "node_modules", "tickcast");
  mkdirSync(installed, { recursive: true });
  run(process.execPath, [join(root, "build.mjs"), join(installed, "dist")], root);
  for (const name of ["package.json", "README.md", "API.md"]) writeFileSync(join(installed, name), read(name));
});
after(() => rmSync(folder, { recursive: true }));
const built = (name) => readFileSync(join(folder, "node_modules/tickcast/dist", name), "utf8");

test("the committed bundle and reference are what the build makes, and the bundle is small", () => {
  assert.ok(read("API.md") === built("API.md"), "run npm run build in src/sdk/js and commit API.md");
  const bundle = read("bundle/tickcast.js");
  assert.ok(bundle === built("tickcast.js"), "run npm run build in src/sdk/js and commit bundle/tickcast.js");
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

test("the package holds its builds, its types and its README", () => {
  const packed = join(folder, "node_modules/tickcast");
  const [{ files }] = JSON.parse(run("npm", ["pack", "--dry-run", "--json", "--offline"], packed));
  const paths = files.map(({ path }) => path);
  const isExpected = (path) =>
    /^(package\.json|README\.md|API\.md|dist\/API\.md|dist\/tickcast\.(mjs|cjs|js)|dist\/(core\/)?[a-z]+\.d\.c?ts)$/.test(path);
  assert.deepEqual(paths.filter((path) => !isExpected(path)), []);
  for (const path of ["dist/tickcast.mjs", "dist/tickcast.cjs", "dist/tickcast.js", "dist/index.d.ts", "dist/index.d.cts"]) {
    assert.ok(paths.includes(path), path);
  }
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
    const client = new Client("wss://host/ws", { getToken: async (why) => why, codec: "native" });
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
  const options = { module: "NodeNext", target: "ES2022", lib: ["ES2023", "DOM"], types: [], strict: true, noEmit: true };
  writeFileSync(join(folder, "program.mts"), program);
  writeFileSync(join(folder, "program.cts"), program);
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions: options, files: ["program.mts", "program.cts"] }));
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  assert.ok(existsSync(tsc), "npm ci in src/sdk/js installs it");
  try {
    run(process.execPath, [tsc, "-p", folder], folder);
  } catch (error) {
    assert.fail(error.stdout);
  }
});
