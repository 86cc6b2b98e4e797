// board.js: a board of live prices.
//
// Serve the folder src/sdk/js by any web server, and open examples/price-board/?server=ws://HOST:PORT/ws. The tickcast server must allow the page's origin.
// In a page that the tickcast server's host serves, import "/tickcast.js" instead.
import { Client } from "../../bundle/tickcast.js";

/** Points of a trend. */
const TREND_MAX = 60;

const parameters = new URLSearchParams(location.search);
const client = new Client(parameters.get("server") ?? "/ws", { name: "price-board", codec: "native" });
// Ten updates a second are as many as anyone can read; the server conflates the rest, and says so.
const prices = client.subscribe(parameters.get("topics") ?? "market.ticker.>", { from: "latest", policy: "conflate", maxRate: 10 });

const element = (id) => document.getElementById(id);
const rows = new Map();
const totals = { conflated: 0, lost: 0, updates: 0 };

client.on("state", ({ state, reason, retryInMs }) => {
  const why = reason || "the connection was lost";
  const text = state === "connected" ? "live" : retryInMs === undefined ? state : `${why}; next attempt in ${(retryInMs / 1000).toFixed(1)} s`;
  element("state").textContent = text;
  element("state").dataset.state = state;
});
client.on("latency", ({ roundTripMs }) => (element("latency").textContent = `${roundTripMs.toFixed(1)} ms`));
prices.on("conflated", ({ count }) => (element("conflated").textContent = totals.conflated += count));
prices.on("gap", ({ count }) => (element("lost").textContent = totals.lost += count));
prices.on("error", ({ reason }) => console.error(reason));

/** A row of the table, in the order of the products. */
function addRow(product) {
  const row = document.createElement("tr");
  row.innerHTML =
    '<th scope="row"></th><td class="number"></td><td class="number"></td><td class="number wide"></td><td class="number wide"></td>' +
    '<td class="wide"><svg preserveAspectRatio="none" aria-hidden="true"><polyline/></svg></td>';
  row.firstChild.textContent = product;
  const after = [...rows].find(([other]) => other > product);
  element("rows").insertBefore(row, after === undefined ? null : after[1].row);
  const [, last, change, bid, ask] = row.children;
  const added = { row, last, change, bid, ask, line: row.querySelector("polyline"), svg: row.querySelector("svg"), trend: [], tick: null };
  rows.set(product, added);
  return added;
}

function draw({ tick, last, change, bid, ask, line, svg, trend }) {
  const { price, open_24h: open, best_bid: bestBid, best_ask: bestAsk } = tick.data;
  const percent = (price / open - 1) * 100;
  last.textContent = price;
  bid.textContent = bestBid;
  ask.textContent = bestAsk;
  change.textContent = `${percent < 0 ? "−" : "+"}${Math.abs(percent).toFixed(2)} %`;
  change.className = `number ${percent < 0 ? "down" : "up"}`;
  trend.push(Number(price));
  if (trend.length > TREND_MAX) trend.shift();
  const [low, high] = [Math.min(...trend), Math.max(...trend)];
  const y = (value) => (high === low ? 0.5 : (high - value) / (high - low));
  svg.setAttribute("viewBox", `0 -0.1 ${Math.max(trend.length - 1, 1)} 1.2`);
  svg.setAttribute("class", trend.at(-1) < trend[0] ? "down" : "up");
  line.setAttribute("points", trend.map((value, at) => `${at},${y(value)}`).join(" "));
}

// Drawn once a frame, however many ticks arrive.
const changed = new Set();
function drawChanged() {
  for (const row of changed) draw(row);
  changed.clear();
}

setInterval(() => {
  element("rate").textContent = totals.updates;
  totals.updates = 0;
}, 1_000);

for await (const tick of prices) {
  const product = tick.topic.split(".").at(-1);
  const row = rows.get(product) ?? addRow(product);
  row.tick = tick;
  totals.updates += 1;
  if (changed.size === 0) requestAnimationFrame(drawChanged);
  changed.add(row);
}
