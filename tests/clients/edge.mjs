// edge.mjs: shared by page-edges.mjs and page-faults.mjs: a page on a scripted server of its own, its clock, and a wave.
import { open } from "./browser.mjs";
import { announced, serve, tick } from "./scripted.mjs";

const VIEWPORT = { width: 1280, height: 900 };
/** The default wave: 25 batches of 10 samples a second. */
export const FS = 250;
export const BATCH = 10;
export const [INFO, WAVE, PARAMS, FIRST] = [1, 2, 3, 10];
export const EPOCH = 7n;
export const MS = 1_000_000n;

/** Tells the test which of the server's marks (`isHeard`) this page has processed. */
function hearMarks() {
  window.WebSocket = class extends WebSocket {
    constructor(...words) {
      super(...words);
      // Runs before the page's own handler, in the same task, so nothing can observe the state in between.
      this.addEventListener("message", ({ data }) => {
        const end = new DataView(data, data.byteLength - 32);
        if (end.getUint16(8, true) === 200) window.marksHeard = end.getUint32(16, true);
      });
    }
  };
}

/** Opens a page on a server of its own. Its clock runs until it is set. */
export async function begin(browser, { isClockOurs = false, mute = 0, query = "" } = {}) {
  const script = await serve();
  script.mute = mute;
  const tab = await open(browser, script.url, { viewport: VIEWPORT });
  await tab.page.addInitScript(hearMarks);
  if (isClockOurs) await tab.page.clock.install();
  await tab.page.goto(script.url + query);
  return { tab, script };
}

/** Opens a page as above and waits until it is live and has subscribed to a pattern. */
export async function start(browser, options, pattern = ">") {
  const edge = await begin(browser, options);
  await edge.script.isAsked(1, pattern);
  await edge.tab.state("live");
  return edge;
}

/** Stops the page's clock: only `fastForward` moves it. It is set forward by less than what counts as sleep. */
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

/** Batches `[from, to)` of a slow sine wave that started at `startNs`. */
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
