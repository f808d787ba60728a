// A case's whole story: prompt, attempts with the judge's quotes marked in the answer, strategy, expert, money.

import { get } from "./api.js";
import { badge, byId, el, replace, table, time } from "./dom.js";
import { sayError } from "./dialogs.js";
import { ago, count, duration, money, percent, words } from "./format.js";

const TONES = { gold: "ok", unresolved: "warn", dead: "bad", holdout: "info", dropped: "quiet" };

/** Opens the story of a case. */
export async function openStory(/** @type {string} */ id) {
  try {
    const story = await get(`/api/cases/${encodeURIComponent(id)}`);
    const dialog = byId("story");
    replace(
      dialog,
      el(
        "div",
        { class: "sheet-bar" },
        el("h2", { id: "story-title" }, "Case ", el("span", { class: "mono", text: id })),
        outcomeBadge(story.case.outcome),
        el("button", { class: "plain", text: "Close", onclick: () => dialog.close() }),
      ),
      el("div", { class: "sheet-body", tabindex: "0" }, tell(story)),
    );
    dialog.showModal();
  } catch (error) {
    sayError(error);
  }
}

/** Returns how a case ended, or that it is on its way. */
export function outcomeBadge(/** @type {any} */ outcome) {
  if (!outcome) return badge("in flight", "info");
  return badge(
    outcome.kind + (outcome.reason ? `: ${words(outcome.reason)}` : ""),
    /** @type {Record<string, string>} */ (TONES)[outcome.kind] ?? "quiet",
  );
}

/** Returns a story as sections. */
export function tell(/** @type {any} */ story) {
  const c = story.case;
  return el(
    "div",
    { class: "story" },
    origin(story),
    prompt(c),
    el(
      "div",
      { class: "attempts" },
      (c.attempts ?? []).map((/** @type {any} */ a, /** @type {number} */ i) =>
        attempt(a, i === c.attempts.length - 1),
      ),
    ),
    c.attempts?.length
      ? null
      : el("p", {
          class: "muted",
          text: c.outcome ? "No model was asked about this case." : "No attempt yet: the case waits for the student.",
        }),
    strategy(c.strategy),
    review(c.review),
    production(c),
    spend(c),
    superseded(story.superseded ?? []),
  );
}

function origin(/** @type {any} */ story) {
  const c = story.case,
    s = c.source ?? {};
  const facts = [
    ["Task", c.task],
    ["Split", c.split],
    ["Now in", story.where],
    ["Read from", `${s.topic}[${s.partition}] at offset ${s.offset}`],
    ["Shape", c.shape],
    ["Trace", c.trace_id],
    ["Ended", c.outcome?.at_ms ? time(ago(c.outcome.at_ms), c.outcome.at_ms) : null],
    ["At stage", c.outcome?.stage],
    ["Epoch", c.epoch || null],
  ];
  return [
    el(
      "dl",
      { class: "facts" },
      facts.filter(([, v]) => v).map(([k, v]) => el("div", {}, el("dt", { text: k }), el("dd", {}, v))),
    ),
    c.outcome?.detail ? el("p", { class: "error-text", text: c.outcome.detail }) : null,
  ];
}

function prompt(/** @type {any} */ c) {
  if (!(c.messages ?? []).length) return null;
  return el(
    "div",
    { class: "block" },
    el("h4", { text: "Prompt" }),
    c.messages.map((/** @type {any} */ m) =>
      el(
        "div",
        { class: "message" },
        el("span", { class: "role", text: m.role }),
        text(content(m)),
        (m.tool_calls ?? []).map((/** @type {any} */ t) =>
          text(`calls ${t.function?.name ?? "?"}(${t.function?.arguments ?? ""})`),
        ),
      ),
    ),
  );
}

/** Returns a message's text, whichever of the two shapes of chat completions it has. */
export function content(/** @type {any} */ message) {
  if (typeof message.content === "string") return message.content;
  return (message.content ?? []).map((/** @type {any} */ part) => part.text ?? `[${part.type}]`).join("\n");
}

/** Returns one attempt with its verdict; the quotes of violations are marked where they stand in the answer. */
export function attempt(/** @type {any} */ a, last = false, extra = /** @type {any} */ (null)) {
  const v = a.verdict,
    who = a.refiner ? `${a.refiner} refiner` : a.source;
  const name = a.round === 0 ? "First attempt" : `Attempt ${a.round}`;
  const facts = [
    a.model,
    a.adapter && `adapter ${a.adapter}`,
    a.changed !== undefined && a.changed !== null && `${percent(a.changed, 0)} of the words changed`,
    a.latency_s && duration(a.latency_s),
    a.completion_tokens && `${count(a.completion_tokens)} tokens`,
    a.cost_usd && money(a.cost_usd),
  ]
    .filter(Boolean)
    .join(", ");
  const violations = v?.violations ?? [];
  return el(
    "article",
    { class: `attempt ${v ? (v.passed ? "passed" : "failed") : ""} ${last ? "last" : ""}` },
    el(
      "header",
      {},
      el("h4", { text: `${name}, by ${who}` }),
      v
        ? badge(`${v.passed ? "passed" : "failed"} ${score(v)}`, v.passed ? "ok" : "bad")
        : badge("not judged", "quiet"),
      extra,
    ),
    facts ? el("p", { class: "hint", text: facts }) : null,
    highlighted(
      a.text,
      violations.map((/** @type {any} */ x) => x.hinge),
    ),
    violations.length
      ? el(
          "ul",
          { class: "violations" },
          violations.map((/** @type {any} */ x) => violation(x)),
        )
      : null,
    v
      ? el("p", {
          class: "hint",
          text: `Judged by ${v.judge}${(v.votes ?? 1) > 1 ? `, ${v.votes} votes, ${percent(v.agreement ?? 1, 0)} agree` : ""}${v.misquoted ? `; ${v.misquoted} with a quote that is not in the answer, not counted` : ""}`,
        })
      : null,
  );
}

function violation(/** @type {any} */ x) {
  const severity = x.severity ?? "major";
  return el(
    "li",
    {},
    badge(severity, severity === "critical" ? "bad" : severity === "major" ? "warn" : "quiet"),
    " ",
    el("strong", { class: "mono", text: x.rule }),
    x.hinge ? [" at ", el("q", { text: x.hinge })] : "",
    x.why ? `: ${x.why}` : "",
    x.fix ? el("span", { class: "fix", text: `To mend it: ${x.fix}` }) : null,
  );
}

/** Returns a text with every occurrence of the quotes marked; overlapping ones as one. */
export function highlighted(/** @type {string} */ whole, /** @type {(string | undefined)[]} */ quotes) {
  const spans = [];
  for (const quote of new Set(quotes.filter((q) => q && q.trim()))) {
    for (
      let at = whole.indexOf(/** @type {string} */ (quote));
      at >= 0;
      at = whole.indexOf(/** @type {string} */ (quote), at + 1)
    )
      spans.push([at, at + /** @type {string} */ (quote).length]);
  }
  spans.sort((a, b) => a[0] - b[0]);
  const parts = [];
  let done = 0;
  for (let [from, to] of spans) {
    from = Math.max(from, done);
    if (to <= from) continue;
    parts.push(whole.slice(done, from), el("mark", { text: whole.slice(from, to) }));
    done = to;
  }
  return el("pre", { class: "text", tabindex: whole.length > 1500 ? "0" : null }, parts, whole.slice(done));
}

function strategy(/** @type {any} */ s) {
  return s
    ? el(
        "div",
        { class: "block strategy" },
        el("h4", { text: `Strategy ${s.id ?? ""}` }),
        el("p", {}, el("strong", { text: "Mistake: " }), s.mistake),
        el("p", {}, el("strong", { text: "Guardrail: " }), s.guardrail),
        s.model ? el("p", { class: "hint", text: `By ${s.model}` }) : null,
      )
    : null;
}

function review(/** @type {any} */ r) {
  return r
    ? el(
        "div",
        { class: "block" },
        el("h4", { text: `Expert ${r.by}: ${r.decision}` }),
        el("p", {}, r.reason ?? "", " ", time(ago(r.at_ms), r.at_ms)),
        (r.rules ?? []).length ? el("p", { class: "hint", text: `Rules broken: ${r.rules.join(", ")}` }) : null,
      )
    : null;
}

function production(/** @type {any} */ c) {
  return c.production_answer
    ? el(
        "details",
        { class: "block" },
        el("summary", { text: `What the product answered${c.production_model ? ` (${c.production_model})` : ""}` }),
        text(c.production_answer),
      )
    : null;
}

function spend(/** @type {any} */ c) {
  const s = c.spend ?? {};
  const rows = (c.charges ?? []).map((/** @type {any} */ x) => [
    x.role,
    el("span", { class: "mono", text: x.model }),
    x.round ?? 0,
    count(x.calls ?? 1),
    count((x.prompt_tokens ?? 0) + (x.completion_tokens ?? 0)),
    money(x.cost_usd ?? 0),
    duration(x.model_s ?? 0),
  ]);
  return el(
    "div",
    { class: "block" },
    el("h4", {
      text: `Spend: ${money(s.cost_usd ?? 0)}, ${count(s.calls ?? 0)} calls, ${count((s.prompt_tokens ?? 0) + (s.completion_tokens ?? 0))} tokens, ${duration(s.model_s ?? 0)} of model time`,
    }),
    rows.length
      ? el(
          "div",
          { class: "scroll", role: "region", tabindex: "0", "aria-label": "Spend by hop" },
          table(
            "Spend by hop",
            [
              { label: "Role" },
              { label: "Model" },
              { label: "Round", numeric: true },
              { label: "Calls", numeric: true },
              { label: "Tokens", numeric: true },
              { label: "Cost", numeric: true },
              { label: "Time", numeric: true },
            ],
            rows,
          ),
        )
      : null,
  );
}

function superseded(/** @type {any[]} */ older) {
  return older.length
    ? el(
        "div",
        { class: "block" },
        el("h4", { text: "Supersedes" }),
        el(
          "ul",
          {},
          older.map((o) =>
            el(
              "li",
              {},
              `epoch ${o.epoch}: ${o.outcome}${o.reason ? ` (${words(o.reason)})` : ""}${o.review ? `, ${o.review} by ${o.reviewer}` : ""}, `,
              time(ago(o.ended_ms), o.ended_ms),
            ),
          ),
        ),
      )
    : null;
}

function score(/** @type {any} */ v) {
  return `${+v.score.toFixed(2)} of ${+v.max_score.toFixed(2)}`;
}

function text(/** @type {string} */ whole) {
  return el("pre", { class: "text", tabindex: whole.length > 1500 ? "0" : null, text: whole });
}
