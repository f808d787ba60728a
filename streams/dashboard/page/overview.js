// The figures one looks at first, and how the page hears of them.

import { el } from "./dom.js";
import { count, duration, money, percent } from "./format.js";

/** Returns the tiles: what is under way, what came of it, what it costs, what waits for people. */
export function tiles(/** @type {any} */ state) {
  const reading = state.flow.edges.filter((/** @type {any} */ e) => e.group && e.lag !== null);
  const lag = sum(reading, "lag"),
    oldest = Math.max(0, ...reading.map((/** @type {any} */ e) => e.oldest_s ?? 0));
  const arriving = sum(
    reading.filter((/** @type {any} */ e) => e.from.startsWith("source:")),
    "rate_per_s",
  );
  const gold = sum(state.outcomes, "gold"),
    corrected = sum(state.outcomes, "corrected");
  const serving = state.passing.map((/** @type {any} */ p) => p.lines[p.lines.length - 1]).filter(Boolean);
  const judged = sum(serving, "judged"),
    passed = sum(serving, "passed");
  const usd = sum(state.cost.tasks, "usd"),
    rows = sum(state.cost.tasks, "gold_rows");
  const dead = sum(state.dead, "letters"),
    waiting = state.review.waiting_unresolved + state.review.waiting_accepted;
  const known = reading.length > 0;
  return [
    tile(
      "Records waiting",
      known ? count(lag) : "–",
      known ? (oldest >= 1 ? `oldest ${duration(oldest)}` : "none is old") : "Kafka not read",
      oldest > 600 ? "bad" : oldest > 60 ? "warn" : "",
      "#flow",
    ),
    tile(
      "Read from the product",
      known ? `${arriving < 10 ? arriving.toFixed(1) : count(arriving)}/s` : "–",
      "records a second",
      "",
      "#flow",
    ),
    tile("Gold rows", count(gold), `${count(corrected)} corrected`, "", "#quality"),
    tile(
      "First attempts passed",
      judged ? percent(passed / judged) : "–",
      judged ? "under the newest adapter" : "none judged yet",
      "",
      "#quality",
    ),
    tile("Cost per gold row", rows ? money(usd / rows) : "–", `${money(usd)} in all`, "", "#cost"),
    tile("Waiting for review", count(waiting), `${count(state.review.waiting_unresolved)} unresolved`, "", "#review"),
    tile(
      "Dead letters",
      count(dead),
      dead ? `${state.dead.length} kind${state.dead.length === 1 ? "" : "s"}` : "none",
      dead ? "warn" : "",
      "#dead",
    ),
  ];
}

function tile(
  /** @type {string} */ name,
  /** @type {string} */ value,
  /** @type {string} */ said,
  /** @type {string} */ tone,
  /** @type {string} */ href,
) {
  return el(
    "div",
    { class: `tile ${tone}` },
    el("dt", {}, el("a", { href, text: name })),
    el("dd", { class: "value", text: value }),
    el("dd", { class: "said", text: said }),
  );
}

function sum(/** @type {any[]} */ items, /** @type {string} */ key) {
  return items.reduce((total, item) => total + (item[key] ?? 0), 0);
}
