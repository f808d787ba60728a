// A chart of shares or sums over time: lines that say their own names, marks above, the nearest values under the
// pointer, and the same figures as a table for whoever does not see it.

import { el, svg, table } from "./dom.js";
import { clock } from "./format.js";

/**
 * @typedef {{x: number, y: number, note: string}} Point x in ms, y in the chart's unit, note said beside the value
 * @typedef {{name: string, color: string, points: Point[]}} Line
 * @typedef {{x: number, kind: string, label: string, title: string}} Mark
 */

const H = 240,
  TOP = 42,
  BOTTOM = 26,
  LEFT = 54;

/**
 * Returns a chart that draws itself for the width it gets.
 * `top` is the highest value of its axis; `gap`, in ms, breaks a line where it has no point for longer.
 * @param {{caption: string, lines: Line[], marks?: Mark[], from: number, to: number, top?: number, gap?: number, format: (y: number) => string}} chart
 */
export function timeChart(chart) {
  const holder = el("div", { class: "chart" });
  const rows = chart.lines.flatMap((line) =>
    line.points.map((p) => [line.name, clock(p.x, true), chart.format(p.y), p.note]),
  );
  const marks = (chart.marks ?? []).map((m) => el("li", {}, clock(m.x, true) + ": " + m.title));
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (!holder.isConnected) return observer.disconnect();
    if (holder.clientWidth && holder.clientWidth !== width) {
      width = holder.clientWidth;
      holder.replaceChildren(draw(chart, width));
    }
  });
  observer.observe(holder);
  return [
    holder,
    el(
      "details",
      {},
      el("summary", { text: "As a table" }),
      el(
        "div",
        { class: "scroll short", role: "region", "aria-label": `${chart.caption}, as a table`, tabindex: "0" },
        marks.length ? el("ul", { class: "marks" }, marks) : null,
        table(
          chart.caption,
          [{ label: "Line" }, { label: "Time" }, { label: "Value", numeric: true }, { label: "Of", numeric: true }],
          rows,
        ),
      ),
    ),
  ];
}

function draw(/** @type {any} */ chart, /** @type {number} */ width) {
  const names = width < 480 ? 10 : 58; // room for the lines' names at the right
  const right = width - names,
    bottom = H - BOTTOM;
  const highest =
    chart.top ?? roundUp(Math.max(1e-12, ...chart.lines.flatMap((/** @type {Line} */ l) => l.points.map((p) => p.y))));
  const span = Math.max(1, chart.to - chart.from);
  const x = (/** @type {number} */ ms) => LEFT + ((ms - chart.from) / span) * (right - LEFT);
  const y = (/** @type {number} */ v) => bottom - (Math.min(v, highest) / highest) * (bottom - TOP);
  const root = svg("svg", { width, height: H, viewBox: `0 0 ${width} ${H}`, role: "img", "aria-label": chart.caption });
  for (const step of [0, 0.25, 0.5, 0.75, 1]) {
    const v = highest * step;
    root.append(svg("line", { x1: LEFT, x2: right, y1: y(v), y2: y(v), class: "gridline" }));
    root.append(svg("text", { x: LEFT - 7, y: y(v) + 4, class: "tick", "text-anchor": "end", text: chart.format(v) }));
  }
  const ticks = Math.max(2, Math.min(6, Math.floor((right - LEFT) / 110)));
  const dated = span > 86_400_000;
  for (let i = 0; i < ticks; i += 1) {
    const ms = chart.from + (span * i) / (ticks - 1);
    root.append(
      svg("text", {
        x: x(ms),
        y: H - 8,
        class: "tick",
        "text-anchor": i === 0 ? "start" : i === ticks - 1 ? "end" : "middle",
        text: clock(ms, dated),
      }),
    );
  }
  root.append(...drawMarks(chart.marks ?? [], x, bottom, right));
  for (const line of chart.lines) {
    if (!line.points.length) continue;
    const d = line.points
      .map(
        (/** @type {Point} */ p, /** @type {number} */ i, /** @type {Point[]} */ all) =>
          `${i && p.x - all[i - 1].x <= (chart.gap ?? Infinity) ? "L" : "M"}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`,
      )
      .join("");
    root.append(svg("path", { d, class: `series ${line.color}` }));
    const few = line.points.length < 40;
    if (few)
      root.append(
        svg(
          "g",
          {},
          line.points.map((/** @type {Point} */ p) =>
            svg("circle", {
              cx: x(p.x),
              cy: y(p.y),
              r: line.points.length === 1 ? 4 : 2.5,
              class: `dot ${line.color}`,
            }),
          ),
        ),
      );
  }
  root.append(...(names > 10 ? lineNames(chart.lines, x, y, right, bottom) : []));
  root.append(pointer(chart, root, x, y, right, bottom));
  return root;
}

/** The next number above that divides well by four: 0.4, 0.8, 1, 2, 4, 8, ... */
function roundUp(/** @type {number} */ highest) {
  const power = 10 ** Math.floor(Math.log10(highest));
  return power * ([1, 1.2, 1.6, 2, 3, 4, 6, 8].find((n) => n * power >= highest) ?? 10);
}

/** Promotions and rollbacks: a line each, and its label where the one before leaves room. */
function drawMarks(
  /** @type {Mark[]} */ marks,
  /** @type {(ms: number) => number} */ x,
  /** @type {number} */ bottom,
  /** @type {number} */ right,
) {
  const ends = [-Infinity, -Infinity]; // of the last label in each of two rows
  return marks.map((mark) => {
    const at = x(mark.x),
      width = mark.label.length * 6.6 + 12;
    const row = at > ends[0] ? 0 : at > ends[1] ? 1 : -1;
    const left = Math.min(at, right - width + 50);
    if (row >= 0) ends[row] = left + width;
    const g = svg(
      "g",
      { class: `event ${mark.kind}` },
      svg("title", { text: mark.title }),
      svg("line", { x1: at, x2: at, y1: TOP - 6, y2: bottom }),
      svg("path", {
        d: mark.kind === "promotion" ? `M${at - 4} ${TOP - 3}h8l-4 -7z` : `M${at - 4} ${TOP - 10}h8l-4 7z`,
      }),
    );
    if (row >= 0) g.append(svg("text", { x: left + 7, y: 12 + row * 12, text: mark.label }));
    return g;
  });
}

function lineNames(
  /** @type {Line[]} */ lines,
  /** @type {(ms: number) => number} */ x,
  /** @type {(v: number) => number} */ y,
  /** @type {number} */ right,
  /** @type {number} */ bottom,
) {
  const ends = lines
    .filter((l) => l.points.length)
    .map((line) => {
      const last = line.points[line.points.length - 1];
      return { line, x: x(last.x), y: y(last.y) };
    })
    .sort((a, b) => a.y - b.y);
  // Names keep 12 px between them: pushed down from the top, then up again from the bottom.
  const places = ends.map((end) => end.y);
  places.forEach((_, i) => (places[i] = Math.max(places[i], i ? places[i - 1] + 12 : TOP)));
  for (let i = places.length - 1; i >= 0; i -= 1)
    places[i] = Math.min(places[i], i === places.length - 1 ? bottom : places[i + 1] - 12);
  return ends.map((end, i) => {
    const at = places[i];
    return svg(
      "g",
      {},
      end.x < right - 4
        ? svg("path", { d: `M${end.x} ${end.y}L${right} ${at}`, class: `leader ${end.line.color}` })
        : null,
      svg("text", { x: right + 5, y: at + 4, class: `line-name ${end.line.color}`, text: end.line.name }),
    );
  });
}

/** Shows the nearest value of each line at the pointer. */
function pointer(
  /** @type {any} */ chart,
  /** @type {any} */ root,
  /** @type {any} */ x,
  /** @type {any} */ y,
  /** @type {number} */ right,
  /** @type {number} */ bottom,
) {
  const g = svg("g", { class: "pointer" });
  const hide = () => g.replaceChildren();
  root.addEventListener("pointerleave", hide);
  root.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    const at = event.clientX - root.getBoundingClientRect().left;
    const all = chart.lines.flatMap((/** @type {Line} */ line) => line.points.map((p) => ({ line, p })));
    if (at < LEFT || at > right || !all.length) return hide();
    const nearest = all.reduce((/** @type {any} */ best, /** @type {any} */ c) =>
      Math.abs(x(c.p.x) - at) < Math.abs(x(best.p.x) - at) ? c : best,
    );
    const here = all.filter((/** @type {any} */ c) => c.p.x === nearest.p.x);
    const texts = [
      clock(nearest.p.x, true),
      ...here.map((/** @type {any} */ c) => `${c.line.name} ${chart.format(c.p.y)} of ${c.p.note}`),
    ];
    const w = Math.max(...texts.map((t) => t.length)) * 6.7 + 16,
      h = texts.length * 16 + 8;
    const px = x(nearest.p.x),
      left = px + 10 + w > right ? px - 10 - w : px + 10,
      top = TOP + 6;
    g.replaceChildren(
      svg("line", { x1: px, x2: px, y1: TOP, y2: bottom }),
      ...here.map((/** @type {any} */ c) =>
        svg("circle", { cx: px, cy: y(c.p.y), r: 4, class: `dot ${c.line.color}` }),
      ),
      svg("rect", { x: left, y: top, width: w, height: h, rx: 5 }),
      ...texts.map((text, i) => svg("text", { x: left + 8, y: top + 17 + i * 16, class: i ? "" : "when", text })),
    );
  });
  return g;
}

/**
 * Returns a bar of several parts. Widths are shares of `whole`.
 * @param {{value: number, tone: string, label: string}[]} parts @param {number} whole
 */
export function bar(parts, whole) {
  const shown = el("div", { class: "parts", role: "img", "aria-label": parts.map((p) => p.label).join(", ") });
  for (const part of parts) {
    if (!part.value) continue;
    const piece = el("span", { class: `part ${part.tone}`, title: part.label });
    piece.style.width = `${(100 * part.value) / Math.max(1e-12, whole)}%`;
    shown.append(piece);
  }
  return shown;
}
