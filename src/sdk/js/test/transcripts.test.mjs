// Runs the transcripts that every SDK runs, on the bundle that the server serves.
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { folder, read, run } from "./transcript.mjs";

const names = readdirSync(folder).filter((name) => name.endsWith(".json") && name !== "features.json");
const transcripts = names.sort().map((name) => [name, read(name)]);

test("every feature has a transcript, and every transcript a feature", () => {
  const shown = new Set(transcripts.map(([, { feature }]) => feature));
  assert.deepEqual([...shown].sort(), Object.keys(read("features.json")).sort());
});

for (const [name, transcript] of transcripts) {
  test(`${transcript.feature}: ${name}: ${transcript.about}`, () => run(transcript));
}
