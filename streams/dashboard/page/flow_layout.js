// Where each place and arrow of the flow lies: the serpentine of DESIGN.md on a wide page, a spine on a phone. Pure.

/**
 * @typedef {{x: number, y: number, w: number, h: number}} Box middle and size, px
 * @typedef {{points: number[][], label: number[], anchor: "start" | "middle" | "end", turned?: boolean}} Route
 * @typedef {{width: number, height: number, boxes: Map<string, Box>, routes: Map<string, Route>}} Layout
 */

export const WIDE_FROM = 1140; // px; below, arrows between boxes in a row would be too short for their labels

const SPINE = ["intake", "prompts", "student", "attempts", "judge", "accepted", "strategist", "outcomes"];
const RETURN = ["sink", "gold_set", "trainer", "gate", "registry", "rollout"];
const ENDS = ["gold", "unresolved", "dead", "holdout", "dropped"];
const SOURCE_W = 128;
const TOPICS = new Set(["prompts", "attempts", "refine", "accepted", "retry", "outcomes", "adapters"]);

/** How much of the free width the arrow into a place gets: one out of a topic carries more words. */
const weight = (/** @type {string} */ id) => (TOPICS.has(id) ? 0.82 : 1.18);

/** Returns the layout for a width, px. `sources` are the ids of the source topics. @returns {Layout} */
export function layout(/** @type {string[]} */ sources, /** @type {number} */ width) {
  return width >= WIDE_FROM ? wide(sources, width) : tall(sources, Math.min(width, 460));
}

function wide(/** @type {string[]} */ sources, /** @type {number} */ width) {
  const boxes = new Map();
  const row1 = 84 + Math.max(0, sources.length - 2) * 22;
  const row2 = row1 + 108;
  const row3 = row2 + 106;
  const size = (/** @type {string} */ id) =>
    TOPICS.has(id) ? { w: id === "outcomes" ? 112 : 84, h: 28 } : { w: 96, h: 46 };
  // Arrows out of a topic carry lag, rate and age; those into one only a rate, and are shorter.
  const fixed = SOURCE_W + SPINE.reduce((sum, id) => sum + size(id).w, 0);
  const unit = (width - fixed - 2) / SPINE.reduce((sum, id) => sum + weight(id), 0);
  sources.forEach((id, i) =>
    boxes.set(id, { x: SOURCE_W / 2 + 1, y: row1 + (i - (sources.length - 1) / 2) * 44, w: SOURCE_W, h: 30 }),
  );
  let edge = SOURCE_W + 1;
  for (const id of SPINE) {
    const { w, h } = size(id);
    edge += unit * weight(id);
    boxes.set(id, { x: edge + w / 2, y: row1, w, h });
    edge += w;
  }
  const at = (/** @type {string} */ id) => boxes.get(id);
  boxes.set("refine", { x: at("judge").x, y: row2, ...size("refine") });
  boxes.set("refiner", { x: at("attempts").x, y: row2, ...size("refiner") });
  boxes.set("retry", { x: at("prompts").x, y: row2, ...size("retry") });
  boxes.set("retries", { x: at("intake").x - 44, y: row2, ...size("retries") });
  const pitch = (at("outcomes").x - at("student").x) / (RETURN.length - 1);
  RETURN.forEach((id, i) => boxes.set(id, { x: at("outcomes").x - i * pitch, y: row3, w: 112, h: 46 }));
  boxes.set("adapters", { x: at("student").x, y: row2 + 22, ...size("adapters") });
  const left = at("strategist").x - 22;
  ENDS.forEach((id, i) => boxes.set(id, { x: left, y: row1 + 52 + i * 19, w: 132, h: 18 }));
  return { width, height: row3 + 34, boxes, routes: wideRoutes(sources, boxes, row1) };
}

function wideRoutes(
  /** @type {string[]} */ sources,
  /** @type {Map<string, Box>} */ boxes,
  /** @type {number} */ row1,
) {
  const routes = new Map();
  const at = (/** @type {string} */ id) => /** @type {Box} */ (boxes.get(id));
  const right = (/** @type {Box} */ b) => b.x + b.w / 2;
  const left = (/** @type {Box} */ b) => b.x - b.w / 2;
  const across = (/** @type {string} */ from, /** @type {string} */ to) => {
    const a = at(from),
      b = at(to),
      forward = a.x < b.x;
    const [x1, x2] = forward ? [right(a), left(b)] : [left(a), right(b)];
    const points =
      a.y === b.y
        ? [
            [x1, a.y],
            [x2, b.y],
          ]
        : [
            [x1, a.y],
            [x2 - 16, a.y],
            [x2 - 16, b.y],
            [x2, b.y],
          ];
    const over = from === "gold_set" ? b.y - b.h / 2 : a.y; // its words need more room than the gap between the boxes
    routes.set(`${from}>${to}`, {
      points,
      label: [(x1 + x2) / 2 - (a.y === b.y ? (forward ? 2 : -2) : 8), over],
      anchor: "middle",
    });
  };
  const down = (/** @type {string} */ from, /** @type {string} */ to, side = "start", dx = 0) => {
    const a = at(from),
      b = at(to),
      below = a.y < b.y;
    const [y1, y2] = below ? [a.y + a.h / 2, b.y - b.h / 2] : [a.y - a.h / 2, b.y + b.h / 2];
    const x = a.x + dx;
    routes.set(`${from}>${to}`, {
      points: [
        [x, y1],
        [x, y2],
      ],
      label: [x + (side === "start" ? 9 : -9), (y1 + y2) / 2],
      anchor: side,
      turned: true,
    });
  };
  for (const source of sources) across(source, "intake");
  SPINE.slice(1).forEach((id, i) => across(SPINE[i], id));
  down("judge", "refine");
  across("refine", "refiner");
  down("refiner", "attempts", "end");
  down("outcomes", "sink", "end");
  RETURN.slice(1).forEach((id, i) => across(RETURN[i], id));
  down("rollout", "adapters");
  down("adapters", "student");
  across("retry", "retries");
  // Into outcomes from above: what ends early. One rail for all, since nobody counts them apart.
  const rail = row1 - 52,
    out = at("outcomes");
  for (const id of ["intake", "student", "judge"]) {
    const a = at(id);
    routes.set(`${id}>outcomes`, {
      points: [
        [a.x, a.y - a.h / 2],
        [a.x, rail],
        [out.x, rail],
        [out.x, out.y - out.h / 2],
      ],
      label: [a.x + 8, rail],
      anchor: "start",
    });
  }
  // Retries come back to the topic of the stage they left; the drawing shows the first, the table all.
  const back = at("retries"),
    first = at("prompts"),
    middle = (back.y + first.y) / 2 + 2;
  routes.set("student>retry", {
    points: [
      [at("student").x - 26, at("student").y + 23],
      [at("student").x - 26, at("retry").y],
      [right(at("retry")), at("retry").y],
    ],
    label: [0, 0],
    anchor: "middle",
  });
  routes.set("retries>prompts", {
    points: [
      [back.x, back.y - back.h / 2],
      [back.x, middle],
      [first.x, middle],
      [first.x, first.y + first.h / 2],
    ],
    label: [0, 0],
    anchor: "middle",
  });
  return routes;
}

function tall(/** @type {string[]} */ sources, /** @type {number} */ width) {
  const boxes = new Map(),
    routes = new Map();
  const x = 82,
    w = 122; // a lane on the left stays free for the adapters' way back
  let y = 0;
  const put = (/** @type {string} */ id, gap = 46) => {
    const h = TOPICS.has(id) ? 28 : 44;
    y += gap + h / 2;
    boxes.set(id, { x, y, w: TOPICS.has(id) ? 104 : w, h });
    y += h / 2;
  };
  sources.forEach((id, i) => put(id, i === 0 ? 2 : 8));
  const first = boxes.get(sources[0]);
  SPINE.forEach((id) => put(id, TOPICS.has(id) ? 34 : 62)); // out of a topic there are three lines of words
  RETURN.forEach((id) => put(id, id === "sink" ? 62 : 34));
  put("adapters", 34);
  const at = (/** @type {string} */ id) => /** @type {Box} */ (boxes.get(id));
  const down = (/** @type {string} */ from, /** @type {string} */ to) => {
    const a = at(from),
      b = at(to),
      y1 = a.y + a.h / 2,
      y2 = b.y - b.h / 2;
    routes.set(`${from}>${to}`, {
      points: [
        [x, y1],
        [x, y2],
      ],
      label: [x + 12, (y1 + y2) / 2],
      anchor: "start",
      turned: true,
    });
  };
  if (first) {
    for (const source of sources.slice(0, -1)) {
      const a = at(source),
        last = at("intake");
      routes.set(`${source}>intake`, {
        points: [
          [a.x + a.w / 2, a.y],
          [a.x + a.w / 2 + 10, a.y],
          [a.x + a.w / 2 + 10, last.y - 6],
          [last.x + last.w / 2, last.y - 6],
        ],
        label: [a.x + a.w / 2 + 16, a.y],
        anchor: "start",
        turned: true,
      });
    }
    down(sources[sources.length - 1], "intake");
  }
  const chain = [...SPINE, ...RETURN, "adapters"];
  chain.slice(1).forEach((id, i) => down(chain[i], id));
  // The refiner's loop hangs to the right of the judge, the retries to the right of the student.
  const side = width - 57;
  boxes.set("refiner", { x: side, y: at("attempts").y - 8, w: 112, h: 44 });
  boxes.set("refine", { x: side, y: at("judge").y + 6, w: 88, h: 28 });
  boxes.set("retries", { x: side, y: at("prompts").y - 8, w: 112, h: 44 });
  boxes.set("retry", { x: side, y: at("student").y + 6, w: 88, h: 28 });
  const join = (/** @type {string} */ from, /** @type {string} */ to) => {
    const a = at(from),
      b = at(to),
      forward = a.x < b.x,
      line = b.y > a.y ? b.y : Math.min(a.y + 6, b.y);
    routes.set(`${from}>${to}`, {
      points: [
        [a.x + ((forward ? 1 : -1) * a.w) / 2, line],
        [b.x - ((forward ? 1 : -1) * b.w) / 2, line],
      ],
      label: [(a.x + b.x) / 2, line],
      anchor: "middle",
    });
  };
  const up = (/** @type {string} */ from, /** @type {string} */ to) => {
    const a = at(from),
      b = at(to),
      y1 = a.y - a.h / 2,
      y2 = b.y + b.h / 2;
    routes.set(`${from}>${to}`, {
      points: [
        [side, y1],
        [side, y2],
      ],
      label: [side - 8, (y1 + y2) / 2],
      anchor: "end",
      turned: true,
    });
  };
  join("judge", "refine");
  up("refine", "refiner");
  join("refiner", "attempts");
  join("student", "retry");
  up("retry", "retries");
  join("retries", "prompts");
  // How cases ended stands beside the sink; who serves goes back to the student along the left edge.
  ENDS.forEach((id, i) => boxes.set(id, { x: width - 66, y: at("sink").y + i * 19 - 8, w: 130, h: 18 }));
  const a = at("adapters"),
    s = at("student"),
    lane = 5;
  routes.set("adapters>student", {
    points: [
      [a.x - a.w / 2, a.y],
      [lane, a.y],
      [lane, s.y],
      [s.x - s.w / 2, s.y],
    ],
    label: [0, 0],
    anchor: "start",
  });
  return { width, height: y + 6, boxes, routes };
}
