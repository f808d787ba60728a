// How good the factory's work is: pass rate by adapter, funnel by round, outcomes, rules broken.

import { bar, timeChart } from "./charts.js";
import { cards, code, el, empty, table } from "./dom.js";
import { count, percent, version, words } from "./format.js";

const FUNNEL_KEYS = [
  ["ok", "passed"],
  ["warn", "refined"],
  ["bad", "ended without passing, or dead"],
  ["quiet", "dropped, or not judged"],
  ["info", "admitted, holdout"],
  ["gold", "gold"],
];

/** Returns the pass rate of first attempts over time, a line an adapter, for each task. */
export function passing(/** @type {any[]} */ all) {
  return byTask(
    all.filter((p) => p.lines.length),
    (p) => {
      const lines = p.lines.map((/** @type {any} */ line, /** @type {number} */ i) => ({
        name: version(line.adapter === "base" ? "" : line.adapter),
        color: `c${i % 8}`,
        points: line.buckets
          .filter((/** @type {any} */ b) => b.judged)
          .map((/** @type {any} */ b) => ({
            x: b.at_ms + p.bucket_ms / 2,
            y: b.passed / b.judged,
            note: `${count(b.judged)} judged`,
          })),
      }));
      const marks = p.marks.map((/** @type {any} */ m) => ({
        x: m.at_ms,
        kind: m.kind,
        label: `${version(m.version === "base" ? "" : m.version)}${m.kind === "rollback" ? " back" : ""}`,
        title: `${m.kind} to ${m.version} by ${m.by}: ${m.reason}`,
      }));
      const key = el(
        "ul",
        { class: "key-list" },
        p.lines.map((/** @type {any} */ line, /** @type {number} */ i) =>
          el(
            "li",
            { title: line.adapter },
            el("span", { class: `swatch c${i % 8}`, "aria-hidden": "true" }),
            `${version(line.adapter === "base" ? "" : line.adapter)} `,
            el("strong", { text: percent(line.judged ? line.passed / line.judged : null) }),
            el("span", { class: "muted", text: ` of ${count(line.judged)}` }),
          ),
        ),
      );
      return [
        ...timeChart({
          caption: `First-attempt pass rate of ${p.task} by adapter`,
          lines,
          marks,
          from: p.from_ms,
          to: p.to_ms + p.bucket_ms,
          top: 1,
          gap: 6 * p.bucket_ms,
          format: (y) => percent(y, 0),
        }),
        key,
        marks.length ? el("p", { class: "hint", text: "Triangle up: promotion. Triangle down: rollback." }) : null,
      ];
    },
    () =>
      empty(
        "No first attempt has been judged yet.",
        "It appears as soon as cases end. Is the product logging to the source topics? Try ",
        code("goldstream lag"),
        ".",
      ),
  );
}

/** Returns how many attempts of each round passed, were refined or ended, for each task. */
export function funnel(/** @type {any[]} */ all) {
  const key = all.some((f) => f.read) ? el("ul", { class: "key-list" }, keys(FUNNEL_KEYS)) : null;
  return [
    byTask(
      all.filter((f) => f.read),
      (f) => {
        const whole = Math.max(1, f.read);
        const row = (
          /** @type {string} */ name,
          /** @type {number} */ n,
          /** @type {any[]} */ parts,
          /** @type {any} */ said,
        ) =>
          el(
            "li",
            { class: "step" },
            el("span", { class: "step-name", text: name }),
            el("span", { class: "step-count num", text: count(n) }),
            bar(parts, whole),
            el("span", { class: "step-said" }, said),
          );
        const part = (/** @type {number} */ value, /** @type {string} */ tone, /** @type {string} */ what) => ({
          value,
          tone,
          label: `${count(value)} ${what}`,
        });
        const rows = [
          row(
            "read",
            f.read,
            [
              part(f.admitted, "info", "admitted"),
              part(f.dropped, "quiet", "dropped"),
              part(f.dead_at_intake, "bad", "dead"),
            ],
            facts([
              [f.dropped, "dropped"],
              [f.dead_at_intake, "dead at intake"],
            ]),
          ),
        ];
        for (const r of f.rounds) {
          const name = r.round === 0 ? "first attempt" : `refinement ${r.round}`;
          const rest = Math.max(0, r.attempted - r.passed - r.refined - r.ended);
          rows.push(
            row(
              name,
              r.attempted,
              [
                part(r.passed, "ok", "passed"),
                part(r.refined, "warn", "refined"),
                part(r.ended, "bad", "ended without passing"),
                part(rest, "quiet", "open or not judged"),
              ],
              [el("strong", { text: percent(r.judged ? r.passed / r.judged : null) }), " passed"],
            ),
          );
        }
        rows.push(
          row(
            "ended",
            f.gold + f.unresolved + f.holdout + f.dead,
            [
              part(f.gold, "gold", "gold"),
              part(f.holdout, "info", "holdout"),
              part(f.unresolved, "warn", "unresolved"),
              part(f.dead, "bad", "dead"),
            ],
            facts([
              [f.gold, "gold"],
              [f.unresolved, "unresolved"],
              [f.holdout, "holdout"],
              [f.dead, "dead"],
            ]),
          ),
        );
        return el("ol", { class: "funnel" }, rows);
      },
      () =>
        empty(
          "No record has been read yet.",
          "Name your topic under ",
          code("[tasks.NAME] topics"),
          " and start ",
          code("goldstream up"),
          ".",
        ),
    ),
    key,
  ];
}

/** Returns how cases ended, with the reasons, for each task. */
export function outcomes(/** @type {any[]} */ all) {
  return byTask(
    all.filter((o) => o.gold + o.unresolved + o.dead + o.holdout + o.dropped),
    (o) => {
      const rows = [
        [
          "gold",
          count(o.gold),
          o.gold
            ? `${count(o.corrected)} corrected, ${count(o.with_strategy)} with a strategy, ${count(o.expert)} decided on by an expert`
            : "",
        ],
        ["unresolved", count(o.unresolved), reasons(o.unresolved_reasons)],
        ["holdout", count(o.holdout), "judged once, never trained on"],
        ["dead", count(o.dead), o.dead ? "see the dead letters below" : ""],
        ["dropped", count(o.dropped), reasons(o.dropped_reasons)],
      ];
      return cards(
        `Outcomes of ${o.task || "records no task took"}`,
        [{ label: "Outcome" }, { label: "Cases", numeric: true }, { label: "Of these", wide: true }],
        rows,
      );
    },
    () => empty("No case has ended yet.", "Outcomes appear when the sink writes its first file."),
  );
}

/** Returns how often each rule was broken, by round, for each task. */
export function rules(/** @type {any[]} */ all) {
  const tasks = [...new Set(all.map((v) => v.task))].map((task) => ({
    task,
    rules: all.filter((v) => v.task === task),
  }));
  return byTask(
    tasks,
    ({ task, rules: found }) => {
      const rounds = [...new Set(found.flatMap((/** @type {any} */ v) => Object.keys(v.by_round).map(Number)))].sort(
        (a, b) => a - b,
      );
      const highest = Math.max(1, ...found.flatMap((/** @type {any} */ v) => Object.values(v.by_round)));
      const rows = found.map((/** @type {any} */ v) => [
        el("span", { class: "mono", text: v.rule }),
        el("span", { class: "muted", text: v.severity }),
        ...rounds.map((r) =>
          el(
            "span",
            { class: "heat" },
            bar(
              [{ value: v.by_round[r] ?? 0, tone: "warn", label: `${count(v.by_round[r] ?? 0)} in round ${r}` }],
              highest,
            ),
            el("span", { text: count(v.by_round[r] ?? 0) }),
          ),
        ),
      ]);
      return el(
        "div",
        { class: "scroll", role: "region", tabindex: "0", "aria-label": "Rules broken" },
        table(
          `Rules broken in ${task}`,
          [
            { label: "Rule" },
            { label: "Severity" },
            ...rounds.map((r) => ({ label: r === 0 ? "First" : `Round ${r}`, numeric: true })),
          ],
          rows,
        ),
      );
    },
    () => empty("No rule has been broken.", "Violations appear here by rule once the judge has found some."),
  );
}

/** Puts a heading over each task's part where there are several, and `nothing` where there are none. */
export function byTask(
  /** @type {any[]} */ items,
  /** @type {(item: any) => any} */ render,
  /** @type {() => any} */ nothing,
) {
  if (!items.length) return [nothing()];
  return items.map((item) =>
    el(
      "div",
      { class: "by-task" },
      items.length > 1 ? el("h4", { class: "task-name", text: item.task || "no task" }) : null,
      render(item),
    ),
  );
}

/** Returns the entries of a legend. */
export function keys(/** @type {string[][]} */ entries) {
  return entries.map(([tone, text]) =>
    el("li", {}, el("span", { class: `swatch ${tone}`, "aria-hidden": "true" }), text),
  );
}

function facts(/** @type {[number, string][]} */ pairs) {
  return pairs
    .filter(([n]) => n)
    .map(([n, what]) => `${count(n)} ${what}`)
    .join(", ");
}

function reasons(/** @type {Record<string, number>} */ by) {
  return Object.entries(by)
    .sort((a, b) => b[1] - a[1])
    .map(([reason, n]) => `${count(n)} ${words(reason)}`)
    .join(", ");
}
