// What gold costs: per row over time, by role and model, and what the budgets leave.

import { bar, timeChart } from "./charts.js";
import { badge, cards, code, el, empty } from "./dom.js";
import { count, money, percent, words } from "./format.js";
import { byTask } from "./quality.js";

/** Returns dollars per gold row over time, for each task. */
export function perRow(/** @type {any} */ cost) {
  return byTask(
    cost.tasks.filter((/** @type {any} */ t) => t.gold_rows || t.usd),
    (t) => {
      const figures = el(
        "dl",
        { class: "figures" },
        figure("per gold row", money(t.usd_per_gold_row), "everything spent on ended cases, over the gold rows"),
        figure("in the row itself", money(t.usd_in_row), "mean of the gold rows' own spend"),
        figure("spent in all", money(t.usd), `${count(t.gold_rows)} gold rows`),
      );
      if (!t.usd)
        return [
          figures,
          el(
            "p",
            { class: "hint" },
            "No model call of this task has a price: its models run locally, or ",
            code("input_cost_per_token"),
            " is not set.",
          ),
        ];
      const points = t.over_time
        .filter((/** @type {any} */ p) => p.gold)
        .map((/** @type {any} */ p) => ({
          x: p.at_ms + t.bucket_ms / 2,
          y: p.usd / p.gold,
          note: `${count(p.gold)} rows, ${money(p.usd)}`,
        }));
      if (points.length < 2) return [figures];
      const over = t.over_time;
      return [
        figures,
        ...timeChart({
          caption: `Cost per gold row of ${t.task}`,
          lines: [{ name: "", color: "c0", points }],
          from: over[0].at_ms,
          to: over[over.length - 1].at_ms + t.bucket_ms,
          format: money,
        }),
      ];
    },
    () =>
      empty(
        "Nothing has been spent, and there is no gold yet.",
        "What the models of each role cost per token stands under ",
        code("[tasks.NAME.ROLE]"),
        ".",
      ),
  );
}

/** Returns calls, tokens and dollars by role and model. */
export function roles(/** @type {any} */ cost) {
  if (!cost.roles.length)
    return [empty("No ended case has called a model yet.", "Calls are counted when their case ends.")];
  const several = new Set(cost.roles.map((/** @type {any} */ r) => r.task)).size > 1;
  const highest = Math.max(1e-12, ...cost.roles.map((/** @type {any} */ r) => r.usd));
  const rows = cost.roles.map((/** @type {any} */ r) => [
    several ? `${r.task} ${r.role}` : r.role,
    el("span", { class: "mono", text: r.model }),
    count(r.calls),
    count(r.prompt_tokens + r.completion_tokens),
    el(
      "span",
      { class: "heat" },
      bar([{ value: r.usd, tone: "info", label: money(r.usd) }], highest),
      el("span", { text: money(r.usd) }),
    ),
  ]);
  const ledger =
    cost.ledger_usd === null
      ? null
      : el("p", {
          class: "hint",
          text: `Rows of ended cases: ${money(cost.rows_usd)}. The ledger, with calls under way and repeated: ${money(cost.ledger_usd)}.`,
        });
  return [
    cards(
      "Cost by role and model",
      [
        { label: "Role" },
        { label: "Model" },
        { label: "Calls", numeric: true },
        { label: "Tokens", numeric: true },
        { label: "Cost", numeric: true },
      ],
      rows,
    ),
    ledger,
  ];
}

/** Returns each cap, how far it is used, and which roles are held. */
export function budget(/** @type {any} */ cost) {
  const held = cost.held.map((/** @type {any} */ h) =>
    el(
      "p",
      { class: "wait held" },
      badge("held", "warn"),
      el("strong", { text: `${h.task} ${h.role}` }),
      el("span", { text: `${h.why}. Since ${h.since}. No case is taken, lag grows, nothing is lost.` }),
    ),
  );
  if (!cost.budgets.length)
    return [
      ...held,
      empty(
        "No cap is set.",
        "Cap money, requests or tokens under ",
        code("[tasks.NAME.budget]"),
        "; a cap that is hit pauses consumption, and loses nothing.",
      ),
    ];
  const rows = cost.budgets.map((/** @type {any} */ b) => {
    const dollars = b.cap === "usd_per_day",
      said = dollars ? money : count;
    const used = b.spent === null ? null : (b.spent + (b.reserved ?? 0)) / b.limit;
    const tone = used === null ? "quiet" : used >= 0.999 ? "bad" : used > 0.8 ? "warn" : "ok";
    const meter =
      used === null
        ? el("span", { class: "muted", text: "limits the pace" })
        : el(
            "span",
            { class: "meter" },
            bar(
              [
                { value: b.spent, tone, label: `${said(b.spent)} spent` },
                { value: b.reserved ?? 0, tone: "quiet", label: `${said(b.reserved ?? 0)} reserved` },
              ],
              Math.max(b.limit, b.spent),
            ),
            el("span", { class: "num", text: percent(used, 0) }),
          );
    return [
      b.task,
      b.role,
      words(b.cap).replace("usd", "dollars"),
      said(b.limit),
      meter,
      b.left === null ? "–" : said(Math.max(0, b.left)),
    ];
  });
  return [
    ...held,
    cards(
      "Budgets",
      [
        { label: "Task" },
        { label: "Role" },
        { label: "Cap" },
        { label: "Limit", numeric: true },
        { label: "Used today (UTC)" },
        { label: "Left", numeric: true },
      ],
      rows,
    ),
  ];
}

/** Returns one figure with its name, for a row of them. */
export function figure(/** @type {string} */ name, /** @type {any} */ value, title = "") {
  return el("div", { title: title || null }, el("dt", { text: name }), el("dd", {}, value));
}
