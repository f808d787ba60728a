// The words on the flow: what waits on an arrow, how fast it is read, how old it is; and texts cut to the room they have.

import { svg } from "./dom.js";
import { count, duration, rate } from "./format.js";

const context = document.createElement("canvas").getContext("2d");

/** Returns the words on an arrow: records that wait, records a second, and where they wait too long their age. */
export function edgeLabel(/** @type {any} */ edge, /** @type {any} */ route, /** @type {string} */ how) {
  const [x, y] = route.label;
  const anchor = { "text-anchor": route.anchor };
  if (edge.kind === "training") {
    const left = /(\d[\d,]*) of (\d[\d,]*)/.exec(edge.note);
    return left
      ? svg("text", {
          x,
          y: route.turned ? y + 4 : y - 7,
          ...anchor,
          class: "rate",
          text: route.turned ? `${left[0]} rows` : left[0],
        })
      : null;
  }
  if (edge.lag === null) {
    if (edge.to === "outcomes" && edge.note && !route.turned)
      return svg("text", { x, y: y - 6, ...anchor, class: "rate", text: edge.note });
    if (edge.rate_per_s === null) return null;
    return svg("text", { x, y: route.turned ? y + 4 : y + 15, ...anchor, class: "rate", text: rate(edge.rate_per_s) });
  }
  const old = how !== "calm" && edge.oldest_s !== null ? `${duration(edge.oldest_s)} old` : "";
  if (route.turned) {
    return [
      svg("text", { x, y: y - 3, ...anchor, class: "lag", text: `${count(edge.lag)} wait` }),
      svg("text", { x, y: y + 12, ...anchor, class: "rate", text: rate(edge.rate_per_s) }),
      old ? pill(old, x, y - 26, route.anchor) : null,
    ];
  }
  const gap = Math.abs(route.points[1][0] - route.points[0][0]);
  const long = `${count(edge.lag)} wait`;
  const lag = measure(long, "600 11.5px sans-serif") < gap - 4 ? long : count(edge.lag);
  return [
    svg("text", { x, y: y - (how === "stuck" ? 11 : 8), ...anchor, class: "lag", text: lag }),
    svg("text", { x, y: y + 16, ...anchor, class: "rate", text: rate(edge.rate_per_s) }),
    old ? pill(old, x, y - 34, "middle") : null,
  ];
}

function pill(
  /** @type {string} */ text,
  /** @type {number} */ x,
  /** @type {number} */ y,
  /** @type {string} */ anchor,
) {
  const w = measure(text, "600 11px sans-serif") + 14;
  const left = anchor === "middle" ? x - w / 2 : anchor === "end" ? x - w : x;
  return svg(
    "g",
    { class: "age" },
    svg("rect", { x: left, y: y - 9, width: w, height: 18, rx: 9 }),
    svg("text", { x: left + w / 2, y: y + 4, "text-anchor": "middle", text }),
  );
}

/** Returns the width of a text, px. */
function measure(/** @type {string} */ text, /** @type {string} */ font) {
  if (!context) return text.length * 7;
  context.font = font.replace("sans-serif", getComputedStyle(document.body).fontFamily);
  return context.measureText(text).width;
}

/** Returns a text, cut to the room it has. */
export function fit(/** @type {string} */ text, /** @type {number} */ room, /** @type {string} */ font) {
  if (measure(text, font) <= room) return text;
  let kept = text;
  while (kept.length > 1 && measure(kept + "…", font) > room) kept = kept.slice(0, -1);
  return kept.trimEnd() + "…";
}
