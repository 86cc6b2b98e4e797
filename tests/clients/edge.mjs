// edge.mjs: what page-edges.mjs and page-faults.mjs share: a page on a scripted server of its own, its clock, and a wave.
import { open } from "./browser.mjs";
import { announced, serve, tick } from "./scripted.mjs";

const VIEWPORT = { width: 1280, height: 900 };
/** The wave: 25 batches of 10 samples a second, if nothing else is said. */
export const FS = 250;
export const BATCH = 10;
export const [INFO, WAVE, PARAMS, FIRST] = [1, 2, 3, 10];
export const EPOCH = 7n;
export const MS = 1_000_000n;

/** Tells the test which of the server's marks (`isHeard`) this page has taken in. */
function hearMarks() {
  window.WebSocket = class extends WebSocket {
    constructor(...words) {
      super(...words);
      // Before the page's own handler, and in one task with it: nobody looks in between.
      this.addEventListener("message", ({ data }) => {
        const end = new DataView(data, data.byteLength - 32);
        if (end.getUint16(8, true) === 200) window.marksHeard = end.getUint32(16, true);
      });
    }
  };
}

/** A page that is opened on a server of its own; its clock goes on by itself until it is set. */
export async function begin(browser, { isClockOurs = false, mute = 0, query = "" } = {}) {
  const script = await serve();
  script.mute = mute;
  const tab = await open(browser, script.url, { viewport: VIEWPORT });
  await tab.page.addInitScript(hearMarks);
  if (isClockOurs) await tab.page.clock.install();
  await tab.page.goto(script.url + query);
  return { tab, script };
}

/** The same, and it is live and has asked for a pattern. */
export async function start(browser, options, pattern = ">") {
  const edge = await begin(browser, options);
  await edge.script.isAsked(1, pattern);
  await edge.tab.state("live");
  return edge;
}

/** The page's clock stands still: time passes by `fastForward` alone. It is set on by less than counts as a sleep. */
export async function pause({ page }) {
  await page.clock.pauseAt((await page.evaluate(() => Date.now())) + 4_000);
}

export async function finish({ tab, script }) {
  tab.assertQuiet();
  await tab.close();
  script.end();
}

export const nowNs = () => BigInt(Date.now()) * MS;
export const price = (value) => JSON.stringify({ price: value });

/** Batches `[from, to)` of a wave that began at `startNs`: a slow sine. */
export function batches(startNs, from, to, batch = BATCH) {
  return Array.from({ length: to - from }, (_, at) => {
    const sequence = from + at;
    const samples = new Float32Array(batch).map((_, n) => Math.sin(((sequence - 1) * batch + n) / 20));
    const lastNs = startNs + (BigInt(sequence * batch - 1) * 1_000n * MS) / BigInt(FS);
    return tick(WAVE, sequence, Buffer.from(samples.buffer), lastNs);
  });
}

export function heart(startNs, batch = BATCH) {
  const info = { fs: FS, units: "mV", signal: "synthetic", record: "synthetic", batch, start_ns: Number(startNs) };
  return [
    announced(INFO, "ecg.info", EPOCH),
    announced(WAVE, "ecg.wave", EPOCH),
    announced(PARAMS, "ecg.params", EPOCH),
    tick(INFO, 1, JSON.stringify(info), nowNs()),
  ];
}
