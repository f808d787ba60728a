// Recent cases: filtered, newest first, each opening its story.

import { get } from "./api.js";
import { badge, byId, cards, el, empty, replace, time } from "./dom.js";
import { ago, clip, duration, money, version, words } from "./format.js";
import { openStory, outcomeBadge } from "./story.js";

const PAGE = 20;
const OUTCOMES = ["", "gold", "unresolved", "dead", "holdout", "dropped"];

/** @type {{lines: any[], next: string, error: string, busy: boolean}} */
const list = { lines: [], next: "", error: "", busy: false };
const filter = { outcome: "", text: "", task: "" };
let asked = 0;

/** Draws the filters and the first page. `task` is the one chosen for the whole page, "" for all. */
export function startCases() {
  const choose = el(
    "select",
    {
      id: "case-outcome",
      "aria-label": "Outcome",
      onchange: (/** @type {any} */ e) => {
        filter.outcome = e.target.value;
        load();
      },
    },
    OUTCOMES.map((o) => el("option", { value: o, text: o || "all outcomes" })),
  );
  let typing = 0;
  const search = el("input", {
    class: "grow",
    type: "search",
    id: "case-text",
    "aria-label": "Search prompts, answers, rules and ids",
    placeholder: "Search prompts, answers, rules, ids",
    oninput: (/** @type {any} */ e) => {
      clearTimeout(typing);
      typing = window.setTimeout(() => {
        filter.text = e.target.value.trim();
        load();
      }, 300);
    },
  });
  const open = el("form", { class: "tools", onsubmit: (/** @type {Event} */ e) => e.preventDefault() }, choose, search);
  replace(byId("cases-panel"), open, el("div", { id: "case-list" }, el("p", { class: "hint", text: "Being read …" })));
  return load();
}

/** Takes the task chosen for the whole page. */
export function casesOfTask(/** @type {string} */ task) {
  filter.task = task;
  return load();
}

/** Looks for new cases, unless the reader has paged further back. */
export function refreshCases() {
  if (list.lines.length <= PAGE && !list.busy) return load();
}

async function load(more = false) {
  const mine = ++asked;
  list.busy = true;
  const query = new URLSearchParams({ limit: String(PAGE) });
  for (const [name, value] of Object.entries(filter)) if (value) query.set(name, value);
  if (more) query.set("before", list.next);
  try {
    const found = await get(`/api/cases?${query}`);
    if (mine !== asked) return;
    Object.assign(list, { lines: more ? [...list.lines, ...found.cases] : found.cases, next: found.next, error: "" });
  } catch (error) {
    if (mine !== asked) return;
    list.error = error instanceof Error ? error.message : String(error);
  } finally {
    list.busy = false;
  }
  draw();
}

function draw() {
  const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset?.focus;
  const here = byId("case-list");
  if (list.error) return replace(here, el("p", { class: "error-text", role: "alert", text: list.error }));
  if (!list.lines.length) {
    const narrowed = filter.outcome || filter.text || filter.task;
    return replace(
      here,
      narrowed
        ? empty("No case matches.", "Take the filter off, or look for another word.")
        : empty("No case has ended yet.", "The first appears when the sink writes its first file."),
    );
  }
  const rows = list.lines.map((c) => [
    el(
      "span",
      { class: "case-line" },
      el("button", {
        class: "link",
        "data-focus": `case-${c.case_id}`,
        text: clip(c.prompt, 110) || c.case_id,
        onclick: () => openStory(c.case_id),
      }),
      el("span", { class: "hint mono", text: c.case_id }),
    ),
    el(
      "span",
      {},
      outcomeBadge({ kind: c.outcome, reason: c.outcome === "gold" ? "" : c.reason }),
      c.review ? [" ", badge(`expert: ${c.review}`, "info")] : null,
    ),
    attempts(c),
    version(c.adapter === "base" ? "" : c.adapter),
    c.score === null ? "–" : `${+c.score.toFixed(2)} / ${+c.max_score.toFixed(2)}`,
    money(c.usd),
    duration(c.duration_s),
    time(ago(c.ended_ms), c.ended_ms),
  ]);
  const shown = cards(
    "Recent cases, the latest first",
    [
      { label: "Prompt", wide: true },
      { label: "Outcome" },
      { label: "Attempts" },
      { label: "Adapter" },
      { label: "Score", numeric: true },
      { label: "Cost", numeric: true },
      { label: "Took", numeric: true },
      { label: "Ended" },
    ],
    rows,
  );
  replace(
    here,
    shown,
    list.next
      ? el(
          "div",
          { class: "buttons" },
          el("button", { "data-focus": "more-cases", text: "Older cases", onclick: () => load(true) }),
        )
      : null,
  );
  if (focused) here.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
}

function attempts(/** @type {any} */ c) {
  if (c.first_attempt_passed === null) return words("not judged");
  return c.first_attempt_passed
    ? "passed at once"
    : c.rounds
      ? `${c.rounds} refinement${c.rounds === 1 ? "" : "s"}`
      : "failed";
}
