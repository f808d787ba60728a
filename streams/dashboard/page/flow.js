// The flow, drawn: places as boxes, arrows as thick and as loud as what waits on them is old.

import { badge, byId, el, svg, table } from "./dom.js";
import { count, duration, rate } from "./format.js";
import { edgeLabel, fit } from "./flow_labels.js";
import { layout } from "./flow_layout.js";
import { level, worst } from "./waiting.js";

const NAMES = { gold_set: "gold set", gate: "gate", registry: "registry" };
const MAX_SOURCES = 6;
const HEADS = { calm: 9, slow: 12, held: 16, late: 16, stuck: 22 }; // px; a line ends where its head begins

/** Draws the flow of a state for a width, px. */
export function drawFlow(/** @type {any} */ state, /** @type {number} */ width) {
  const flow = folded(state.flow);
  const sources = flow.nodes.filter((n) => n.kind === "source").map((n) => n.id);
  const plan = layout(sources, width);
  const nodes = new Map(flow.nodes.map((n) => [n.id, n]));
  const title = svg("title", {
    text: "Flow of cases, from the product's topics to gold and to the adapters that serve",
  });
  const drawn = svg(
    "svg",
    { viewBox: `0 0 ${plan.width} ${plan.height}`, width: plan.width, height: plan.height, class: "flow", role: "img" },
    title,
    heads(),
  );
  const labels = svg("g");
  for (const edge of flow.edges) {
    const route = plan.routes.get(edge.id);
    if (!route) continue;
    const how = level(edge, nodes.get(edge.to));
    const g = svg("g", { class: `edge ${edge.kind} ${how}`, "data-edge": edge.id }, svg("title", { text: told(edge) }));
    const d = shortened(route.points, HEADS[how] - 2)
      .map((p, i) => `${i ? "L" : "M"}${p[0].toFixed(1)} ${p[1].toFixed(1)}`)
      .join("");
    g.append(svg("path", { d, class: "line", "marker-end": `url(#head-${how})` }));
    drawn.append(g);
    labels.append(svg("g", { class: `edge ${how}` }, edgeLabel(edge, route, how)));
  }
  for (const [id, box] of plan.boxes) {
    const node = nodes.get(id);
    if (node) drawn.append(node.kind === "outcome" ? outcomeRow(node, box) : place(node, box, state, flow));
  }
  drawn.append(labels);
  return drawn;
}

/** Returns the list of where cases wait too long, or one line that says nothing does. */
export function stuckList(/** @type {any} */ state) {
  const found = worst(state.flow);
  if (state.problems.some((/** @type {any} */ p) => p.part === "kafka")) {
    return [
      el(
        "p",
        { class: "wait unknown" },
        badge("unknown", "warn"),
        el("span", {
          text: "Kafka does not answer, so lag and rates are not known. The gold set below is still read.",
        }),
      ),
    ];
  }
  if (!found.length)
    return [
      el("p", { class: "wait" }, badge("flowing", "ok"), el("span", { text: "Nothing waits longer than a minute." })),
    ];
  const tones = { slow: "warn", held: "warn", late: "bad", stuck: "bad" };
  return found.map((/** @type {any} */ f) =>
    el(
      "p",
      { class: `wait ${f.level}` },
      badge(f.level, tones[/** @type {"slow"} */ (f.level)]),
      el("strong", { text: f.reader?.label ?? f.edge.to }),
      el("span", { text: f.says }),
    ),
  );
}

/** Returns what the colours mean. */
export function legend() {
  const of = (/** @type {string} */ how, /** @type {string} */ text) =>
    el(
      "span",
      { class: "key" },
      svg(
        "svg",
        { width: 34, height: 10, "aria-hidden": "true" },
        svg("g", { class: `edge ${how}` }, svg("path", { d: "M1 5H33", class: "line" })),
      ),
      text,
    );
  return [
    of("calm", "oldest under 1 min"),
    of("slow", "over 1 min"),
    of("held", "paused, or held by a budget or model"),
    of("late", "over 10 min"),
    of("stuck", "nothing moves"),
    el("span", { class: "key", text: "On an arrow: records that wait, records read a second" }),
  ];
}

/** Returns the arrows that carry lag as a table, with the switch of each stage that has one. */
export function flowTable(/** @type {any} */ state, /** @type {(stage: string, action: string) => void} */ operate) {
  const nodes = new Map(state.flow.nodes.map((/** @type {any} */ n) => [n.id, n]));
  const rows = state.flow.edges
    .filter((/** @type {any} */ e) => e.group)
    .map((/** @type {any} */ e) => {
      const paused = state.flow.paused.includes(e.to);
      const how = level(e, nodes.get(e.to));
      const action = paused ? "resume" : "pause";
      const button = state.flow.pausable.includes(e.to)
        ? el("button", {
            "data-focus": `operate-${e.id}`,
            "aria-label": `${action} ${e.to}`,
            text: paused ? "Resume" : "Pause",
            onclick: () => operate(e.to, action),
          })
        : "";
      return [
        e.group,
        e.topic,
        count(e.lag),
        rate(e.rate_per_s),
        e.trend === null ? "–" : trend(e.trend),
        duration(e.oldest_s),
        count(e.members),
        how === "calm" ? "flowing" : badge(how, how === "late" || how === "stuck" ? "bad" : "warn"),
        button,
      ];
    });
  return table(
    "What each consumer group has yet to read",
    [
      { label: "Group" },
      { label: "Topic" },
      { label: "Waiting", numeric: true },
      { label: "Read", numeric: true },
      { label: "Trend", numeric: true },
      { label: "Oldest", numeric: true },
      { label: "Members", numeric: true },
      { label: "State" },
      { label: "" },
    ],
    rows,
  );
}

/** Keeps the drawing readable with many source topics: the fullest stay, the rest become one. */
function folded(/** @type {any} */ flow) {
  const sources = flow.nodes.filter((/** @type {any} */ n) => n.kind === "source");
  if (sources.length <= MAX_SOURCES)
    return { nodes: /** @type {any[]} */ (flow.nodes), edges: /** @type {any[]} */ (flow.edges) };
  const lag = new Map(flow.edges.map((/** @type {any} */ e) => [e.from, e.oldest_s ?? 0]));
  const last = [...sources]
    .sort((a, b) => (lag.get(b.id) ?? 0) - (lag.get(a.id) ?? 0))
    .slice(MAX_SOURCES - 1)
    .map((n) => n.id);
  const edges = flow.edges.filter((/** @type {any} */ e) => last.includes(e.from));
  const sum = (/** @type {string} */ key) =>
    edges.reduce((/** @type {number} */ s, /** @type {any} */ e) => s + (e[key] ?? 0), 0);
  const rest = {
    ...edges[0],
    id: "source:*>intake",
    from: "source:*",
    topic: `${last.length} topics`,
    lag: sum("lag"),
    rate_per_s: sum("rate_per_s"),
    trend: sum("trend"),
    oldest_s: Math.max(...edges.map((/** @type {any} */ e) => e.oldest_s ?? 0)),
  };
  return {
    nodes: [
      { id: "source:*", label: `${last.length} more topics`, kind: "source", state: "", note: "", count: null },
      ...flow.nodes.filter((/** @type {any} */ n) => !last.includes(n.id)),
    ],
    edges: [rest, ...flow.edges.filter((/** @type {any} */ e) => !last.includes(e.from))],
  };
}

function place(/** @type {any} */ node, /** @type {any} */ b, /** @type {any} */ state, /** @type {any} */ flow) {
  const topic = node.kind === "topic",
    pill = topic || node.kind === "source";
  const name = topic
    ? node.label.slice(state.prefix.length)
    : (/** @type {Record<string, string>} */ (NAMES)[node.id] ?? node.label);
  const g = svg(
    "g",
    { class: `node ${node.kind} ${node.state}`, "data-node": node.id },
    svg("title", { text: [node.label, node.state, node.note].filter(Boolean).join(": ") }),
  );
  g.append(svg("rect", { x: b.x - b.w / 2, y: b.y - b.h / 2, width: b.w, height: b.h, rx: topic ? b.h / 2 : 7 }));
  const sub = pill ? "" : under(node);
  const room = b.w - (pill ? 16 : 14);
  g.append(
    svg("text", {
      x: b.x,
      y: b.y + (sub ? -3 : 4),
      class: pill ? "topic-name" : "name",
      text: fit(name, room, pill ? "11px monospace" : "600 12px sans-serif"),
    }),
  );
  if (sub) g.append(svg("text", { x: b.x, y: b.y + 13, class: "under", text: fit(sub, room, "10.5px sans-serif") }));
  const arriving = topic ? intoTopic(node.id, flow) : null;
  if (arriving !== null)
    g.append(svg("text", { x: b.x - 7, y: b.y + b.h / 2 + 13, class: "arriving", text: `in ${rate(arriving)}` }));
  return g;
}

/** What a topic with several writers receives: what is read from it and how its lag grows, together. */
function intoTopic(/** @type {string} */ id, /** @type {any} */ flow) {
  if (!["attempts", "outcomes"].includes(id)) return null;
  const reading = flow.edges.find((/** @type {any} */ e) => e.from === id && e.group);
  if (!reading || reading.rate_per_s === null || reading.trend === null) return null;
  return Math.max(0, reading.rate_per_s + reading.trend);
}

function under(/** @type {any} */ node) {
  if (node.state === "down") return "not running";
  if (node.state === "paused" || node.state === "held") return node.state;
  if (node.id === "gold_set" && node.count !== null) return `${count(node.count)} gold`;
  if (node.id === "registry" && node.count !== null)
    return `${count(node.count)} version${node.count === 1 ? "" : "s"}`;
  return node.note.replace(/^[\w-]+: /, "") || node.state;
}

function outcomeRow(/** @type {any} */ node, /** @type {any} */ b) {
  const left = b.x - b.w / 2;
  return svg(
    "g",
    { class: `node outcome ${node.id}`, "data-node": node.id },
    svg("rect", { x: left, y: b.y - 4, width: 8, height: 8, rx: 2 }),
    svg("text", { x: left + 14, y: b.y + 4, class: "outcome-name", text: node.label }),
    svg("text", { x: left + b.w, y: b.y + 4, class: "outcome-count", text: count(node.count) }),
  );
}

/** Returns a line without its last pixels. */
function shortened(/** @type {number[][]} */ points, /** @type {number} */ by) {
  const [[x1, y1], [x2, y2]] = points.slice(-2);
  const length = Math.hypot(x2 - x1, y2 - y1);
  const share = Math.max(0, 1 - by / length);
  return [...points.slice(0, -1), [x1 + (x2 - x1) * share, y1 + (y2 - y1) * share]];
}

function heads() {
  return svg(
    "defs",
    {},
    Object.entries(HEADS).map(([how, size]) =>
      svg(
        "marker",
        {
          id: `head-${how}`,
          viewBox: "0 0 8 8",
          refX: 1,
          refY: 4,
          markerWidth: size,
          markerHeight: size,
          markerUnits: "userSpaceOnUse",
          orient: "auto-start-reverse",
        },
        svg("path", { d: "M0 0L8 4L0 8Z", class: `head ${how}` }),
      ),
    ),
  );
}

function told(/** @type {any} */ edge) {
  const facts = [
    `${edge.from.replace("source:", "")} → ${edge.to}`,
    edge.topic,
    edge.lag === null ? "" : `${count(edge.lag)} waiting`,
    edge.rate_per_s === null ? "" : rate(edge.rate_per_s),
    edge.trend ? `trend ${trend(edge.trend)}` : "",
    edge.oldest_s === null ? "" : `oldest ${duration(edge.oldest_s)}`,
    edge.members === null ? "" : `${edge.members} members`,
    edge.note,
  ];
  return facts.filter(Boolean).join(", ");
}

function trend(/** @type {number} */ perSecond) {
  if (Math.abs(perSecond) < 0.05) return "steady";
  return (perSecond > 0 ? "+" : "−") + rate(Math.abs(perSecond));
}

/** Draws again when the width changes; the page calls `redraw` with the present width. */
export function watchWidth(/** @type {string} */ id, /** @type {() => void} */ redraw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = byId(id).clientWidth;
    if (now && now !== width) {
      width = now;
      redraw();
    }
  }).observe(byId(id));
}
