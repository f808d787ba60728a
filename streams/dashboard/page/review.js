// The review queue: what waits for an expert, and how far experts agree with the judge.

import { badge, cards, code, el, empty, time } from "./dom.js";
import { ago, clip, count, percent, words } from "./format.js";
import { startReview } from "./reviewing.js";

/** Returns the queue's panel; `items` are the first of those that wait. */
export function queue(/** @type {any} */ state, /** @type {any} */ found) {
  const waiting = state.waiting_unresolved + state.waiting_accepted;
  const agreed = state.decisions
    ? el("p", { class: "hint", text: state.note || `${count(state.decisions)} decisions` })
    : null;
  if (!waiting || !found?.items.length)
    return [
      empty(
        "Nothing waits for review.",
        "Unresolved cases come here, and of the accepted ones the share set as ",
        code("[tasks.NAME.review] sample"),
        ".",
      ),
      agreed,
    ];
  const rows = found.items.map((/** @type {any} */ item, /** @type {number} */ i) => [
    el(
      "span",
      { class: "case-line" },
      el("button", {
        class: "link",
        "data-focus": `review-${item.case_id}`,
        text: clip(item.prompt, 110) || item.case_id,
        onclick: () => startReview(found, i),
      }),
      el("span", { class: "hint mono", text: item.case_id }),
    ),
    item.why === "unresolved"
      ? badge(`unresolved: ${words(item.reason || "no reason kept")}`, "warn")
      : badge("accepted, sampled", "ok"),
    item.rounds,
    item.score === null ? "–" : `${+item.score.toFixed(2)} / ${+item.max_score.toFixed(2)}`,
    time(ago(item.ended_ms), item.ended_ms),
  ]);
  const shown = cards(
    "The first cases that wait for review",
    [
      { label: "Prompt", wide: true },
      { label: "Why" },
      { label: "Refinements", numeric: true },
      { label: "Score", numeric: true },
      { label: "Ended" },
    ],
    rows,
  );
  return [
    el(
      "div",
      { class: "tools" },
      el("button", {
        class: "primary",
        id: "start-review",
        "data-focus": "start-review",
        text: "Start reviewing",
        onclick: () => startReview(found, 0),
      }),
      el(
        "p",
        {},
        el("strong", { text: count(state.waiting_unresolved) }),
        " unresolved, ",
        el("strong", { text: count(state.waiting_accepted) }),
        " accepted and sampled",
      ),
      state.agreement === null
        ? null
        : el("p", {
            class: "muted",
            title: state.note,
            text: `Experts agree with the judge in ${percent(state.agreement, 0)} (${percent(state.low, 0)} to ${percent(state.high, 0)})`,
          }),
    ),
    shown,
    waiting > found.items.length
      ? el("p", {
          class: "hint",
          text: `The first ${found.items.length} of ${count(waiting)}, in an order drawn once: whoever works through some has seen a random sample.`,
        })
      : null,
  ];
}
