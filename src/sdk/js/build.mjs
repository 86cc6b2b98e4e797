// build.mjs [FOLDER]: builds the package into `dist/` and its reference into API.md, or both into another folder. Without a folder it also updates
// `bundle/tickcast.js`, which the server embeds and serves at `/tickcast.js`; a test checks that it and API.md are current. It copies the licence, which
// npm then packs.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { INTERNAL } from "./internal.mjs";
import { reference } from "./reference.mjs";

const root = fileURLToPath(new URL(".", import.meta.url));
const out = process.argv[2] ?? join(root, "dist");

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

const common = {
  absWorkingDir: root,
  entryPoints: ["src/index.ts"],
  bundle: true,
  target: "es2022",
  charset: "utf8",
  logLevel: "warning",
};
await build({ ...common, format: "esm", outfile: join(out, "tickcast.mjs") });
await build({ ...common, format: "cjs", outfile: join(out, "tickcast.cjs") });
await build({
  ...common,
  format: "esm",
  minify: true,
  mangleProps: new RegExp(`^(${INTERNAL.join("|")})$`),
  banner: { js: "// tickcast's client for browsers. Source: src/sdk/js. Apache-2.0." },
  outfile: join(out, "tickcast.js"),
});

const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
execFileSync(process.execPath, [tsc, "-p", root, "--outDir", out], { stdio: "inherit" });
// The same types for `require`, under the names that TypeScript looks for.
for (const entry of readdirSync(out, { recursive: true })) {
  if (!entry.endsWith(".d.ts")) continue;
  const types = readFileSync(join(out, entry), "utf8");
  const renamed = types.replace(/(from "\.[^"]*)\.js"/g, '$1.cjs"');
  writeFileSync(join(out, entry.replace(/\.d\.ts$/, ".d.cts")), renamed);
}

writeFileSync(join(process.argv[2] ?? root, "API.md"), reference(out));
if (process.argv[2] === undefined) {
  mkdirSync(join(root, "bundle"), { recursive: true });
  copyFileSync(join(out, "tickcast.js"), join(root, "bundle", "tickcast.js"));
  copyFileSync(join(root, "../../../LICENSE"), join(root, "LICENSE"));
}
