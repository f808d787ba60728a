// The trainer of each task: what it does, and what it waits for.

import { bar } from "./charts.js";
import { badge, code, el, empty, time } from "./dom.js";
import { figure } from "./cost.js";
import { ago, count, version } from "./format.js";

/** Returns what each task's trainer does and what would start its next run. */
export function trainers(/** @type {any[]} */ all) {
  if (!all.length)
    return [
      el(
        "div",
        { class: "panel" },
        empty(
          "No trainer is set up.",
          "Add ",
          code("[tasks.NAME.trainer]"),
          " to the settings and start ",
          code("goldstream trainer"),
          ".",
        ),
      ),
    ];
  return all.map((t) =>
    el(
      "div",
      { class: "panel trainer", role: "group", "aria-label": `Trainer of ${t.task}` },
      el(
        "h3",
        {},
        `Trainer of ${t.task} `,
        badge(t.state, t.error ? "bad" : t.state === "training" || t.state === "gating" ? "info" : "quiet"),
      ),
      el(
        "div",
        { class: "trainer-row" },
        ...progress(t),
        el(
          "dl",
          { class: "figures" },
          figure("last run", t.last_run_ms ? time(ago(t.last_run_ms), t.last_run_ms) : "never"),
          figure("loss", t.loss === null ? "–" : t.loss.toFixed(3)),
        ),
      ),
      t.error ? el("p", { class: "error-text", text: t.error }) : null,
    ),
  );
}

function progress(/** @type {any} */ t) {
  if (t.state === "off") return [el("p", { class: "muted", text: "Training is switched off for this task." })];
  const waits = el(
    "div",
    { class: "progress" },
    el("p", {}, el("strong", { text: `${count(t.corrected)} of ${count(t.needed)}` }), " new corrected rows"),
    bar(
      [
        {
          value: Math.min(t.corrected, t.needed),
          tone: t.corrected >= t.needed ? "ok" : "info",
          label: `${t.corrected} of ${t.needed}`,
        },
      ],
      t.needed,
    ),
    el("p", {
      class: "hint",
      text:
        t.corrected >= t.needed
          ? "Enough for the next run."
          : `${count(t.needed - t.corrected)} more start the next run.`,
    }),
  );
  if (t.state !== "training" && t.state !== "gating") return [waits];
  const run = el(
    "div",
    { class: "progress" },
    el(
      "p",
      {},
      t.state === "gating" ? "Gate judges " : "Trains ",
      el("strong", { title: t.version, text: version(t.version) }),
      t.steps ? `, step ${count(t.step)} of ${count(t.steps)}` : "",
    ),
    bar([{ value: t.steps ? t.step : 1, tone: "info", label: `step ${t.step} of ${t.steps}` }], Math.max(1, t.steps)),
  );
  return [run, waits];
}
