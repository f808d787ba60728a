// Dead letters: what died, why, and back into the flow with it. Nothing is sent before a dry run was shown and confirmed.

import { get } from "./api.js";
import { byId, cards, code, el, empty, replace, time } from "./dom.js";
import { confirm, say, sayError, write } from "./dialogs.js";
import { ago, count, plural, words } from "./format.js";
import { openStory } from "./story.js";

/** Returns the groups of dead letters, each with its letters and its redrive. */
export function dead(/** @type {any[]} */ groups) {
  if (!groups.length)
    return [
      empty(
        "No dead letters.",
        "Whatever cannot go on ends here with a reason, and can be sent back once the cause is gone.",
      ),
    ];
  const rows = groups.map((g) => {
    const key = `${g.task}/${g.stage}/${g.reason}`;
    return [
      g.task || "no task",
      g.stage,
      el("span", {}, el("strong", { text: words(g.reason) }), el("span", { class: "hint", text: g.means })),
      count(g.letters),
      g.newest_ms ? time(ago(g.newest_ms), g.newest_ms) : "–",
      el(
        "span",
        { class: "row-buttons" },
        el("button", {
          "data-focus": `letters-${key}`,
          text: "Letters",
          "aria-label": `Letters of ${g.reason} at ${g.stage}`,
          onclick: () => showLetters(g),
        }),
        el("button", {
          "data-focus": `redrive-${key}`,
          text: "Redrive…",
          "aria-label": `Redrive ${g.reason} at ${g.stage}`,
          onclick: () =>
            redrive(
              { reason: g.reason, stage: g.stage, task: g.task },
              `${plural(g.letters, "letter")} of ${words(g.reason)} at ${g.stage}`,
            ),
        }),
      ),
    ];
  });
  const shown = cards(
    "Dead letters by reason",
    [
      { label: "Task" },
      { label: "Died at" },
      { label: "Reason", wide: true },
      { label: "Letters", numeric: true },
      { label: "Newest" },
      { label: "" },
    ],
    rows,
  );
  return [shown, el("div", { id: "letters" })];
}

async function showLetters(/** @type {any} */ group) {
  const dialog = byId("story");
  try {
    const { letters } = await get(
      `/api/dead?${new URLSearchParams({ task: group.task, stage: group.stage, reason: group.reason, limit: "50" })}`,
    );
    const rows = letters.map((/** @type {any} */ l) => [
      el("button", { class: "link mono", text: l.case_id, onclick: () => openStory(l.case_id) }),
      l.detail || "–",
      el("span", { class: "mono", text: `${l.topic}[${l.partition}] ${l.offset}` }),
      time(ago(l.ended_ms), l.ended_ms),
      el("button", {
        text: "Redrive…",
        "aria-label": `Redrive ${l.case_id}`,
        onclick: () => {
          dialog.close();
          redrive({ ids: [l.case_id] }, `case ${l.case_id}`);
        },
      }),
    ]);
    const shown = cards(
      "Dead letters",
      [
        { label: "Case" },
        { label: "What happened", wide: true },
        { label: "Read from" },
        { label: "Died" },
        { label: "" },
      ],
      rows,
    );
    replace(
      dialog,
      el(
        "div",
        { class: "sheet-bar" },
        el("h2", { id: "story-title", text: `${words(group.reason)} at ${group.stage}` }),
        el("button", { class: "plain", text: "Close", onclick: () => dialog.close() }),
      ),
      el(
        "div",
        { class: "sheet-body", tabindex: "0" },
        el("p", {
          class: "hint",
          text: `${group.means}. The latest ${letters.length} of ${count(group.letters)}. In a terminal: `,
        }),
        code(`goldstream dlq show ${letters[0]?.case_id ?? "ID"}`),
        shown,
      ),
    );
    if (!dialog.open) dialog.showModal();
  } catch (error) {
    sayError(error);
  }
}

/** Counts first, asks, and only then sends. `which` is the body of the call without dry_run. */
async function redrive(/** @type {any} */ which, /** @type {string} */ what) {
  try {
    const dry = await write("/api/dead/redrive", { ...which, dry_run: true });
    const would = dry.counts["would be redriven"] ?? 0;
    const given = await confirm({
      title: would ? `Redrive ${plural(would, "letter")}?` : "Nothing would be redriven",
      body: [
        el("p", { text: `Of ${what}, a dry run finds:` }),
        results(dry.counts),
        ...reasonsAgainst(dry.letters),
        would
          ? el("p", {
              text: "They go back to the stage they died at, with their attempts and spend, at the next epoch. Their models are called again.",
            })
          : el("p", { text: "Mend the cause first, then try again." }),
      ],
      action: would ? `Redrive ${plural(would, "letter")}` : "Close",
    });
    if (!given || !would) return;
    const done = await write("/api/dead/redrive", { ...which, dry_run: false });
    say(
      Object.entries(done.counts)
        .map(([result, n]) => `${count(/** @type {number} */ (n))} ${result}`)
        .join(", ") || "nothing was sent",
    );
  } catch (error) {
    sayError(error);
  }
}

function results(/** @type {Record<string, number>} */ counts) {
  return el(
    "ul",
    { class: "results" },
    Object.entries(counts).map(([result, n]) =>
      el("li", {}, el("strong", { class: "num", text: count(n) }), ` ${result}`),
    ),
  );
}

function reasonsAgainst(/** @type {any[]} */ letters) {
  const said = [
    ...new Set(
      letters.filter((l) => l.result !== "would be redriven" && l.detail).map((l) => `${words(l.result)}: ${l.detail}`),
    ),
  ].slice(0, 3);
  return said.length
    ? [
        el(
          "ul",
          { class: "hint" },
          said.map((text) => el("li", { text })),
        ),
      ]
    : [];
}
