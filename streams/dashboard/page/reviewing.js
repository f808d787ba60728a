// Reviewing: one case at a time, its prompt beside its attempts, and a key for every decision.

import { ApiError, get } from "./api.js";
import { badge, byId, el, empty, replace } from "./dom.js";
import { say, sayError, write } from "./dialogs.js";
import { words } from "./format.js";
import { attempt, content } from "./story.js";

const NAME = "goldstream.reviewer";

/** What is being reviewed: the queue, the place in it, the case, and what the reviewer is doing. */
const now = {
  items: /** @type {any[]} */ ([]),
  waiting: 0,
  at: 0,
  found: /** @type {any} */ (null),
  doing: "",
  busy: false,
  task: "",
};

/** Opens the reviewing sheet at one case of the queue. */
export async function startReview(/** @type {any} */ found, /** @type {number} */ at) {
  Object.assign(now, {
    items: [...found.items],
    waiting: Object.values(found.waiting).reduce((/** @type {number} */ a, /** @type {any} */ b) => a + b, 0),
    at,
    doing: "",
  });
  const dialog = byId("reviewing");
  dialog.onkeydown = keys;
  await open();
  if (!dialog.open) dialog.showModal();
  byId("review-body").focus();
}

async function open() {
  const item = now.items[now.at];
  now.doing = "";
  now.found = null;
  if (item) {
    try {
      now.found = await get(`/api/review/${encodeURIComponent(item.case_id)}`);
    } catch (error) {
      sayError(error);
    }
  }
  draw();
}

function draw() {
  const dialog = byId("reviewing"),
    item = now.items[now.at],
    found = now.found;
  const close = el("button", { class: "plain", text: "Close", onclick: () => dialog.close() });
  if (!item || !found) {
    const what = item
      ? empty("This case cannot be shown.", "It may have been decided on meanwhile; go on to the next.")
      : empty("That was the last of these.", "Close this sheet: the queue shows what else waits.");
    replace(
      dialog,
      el("div", { class: "sheet-bar" }, el("h2", { id: "reviewing-title", text: "Review" }), close),
      el("div", { class: "sheet-body", id: "review-body", tabindex: "0" }, what),
      item ? el("div", { class: "sheet-foot" }, el("div", { class: "buttons" }, button("s", "Skip", "", next))) : null,
    );
    return byId("review-body").focus();
  }
  const c = found.story.case;
  replace(
    dialog,
    el(
      "div",
      { class: "sheet-bar" },
      el(
        "h2",
        { id: "reviewing-title" },
        `Review ${now.at + 1} of ${now.items.length} `,
        el("span", { class: "mono muted", text: item.case_id }),
      ),
      item.why === "unresolved"
        ? badge(`unresolved: ${words(item.reason || "no reason kept")}`, "warn")
        : badge("the judge accepted it", "ok"),
      close,
    ),
    el(
      "div",
      { class: "sheet-body review-body", id: "review-body", tabindex: "0" },
      el(
        "div",
        { class: "review-prompt" },
        el("h4", { text: `Prompt, task ${c.task}` }),
        (c.messages ?? []).map((/** @type {any} */ m) =>
          el(
            "div",
            { class: "message" },
            el("span", { class: "role", text: m.role }),
            el("pre", { class: "text", text: content(m) }),
          ),
        ),
      ),
      el(
        "div",
        { class: "attempts" },
        (c.attempts ?? []).map((/** @type {any} */ a) => attempt(a, a.round === found.proposed_round, takes(a, found))),
        c.strategy ? el("p", { class: "hint" }, el("strong", { text: "Strategy: " }), c.strategy.guardrail) : null,
      ),
    ),
    el("div", { class: "sheet-foot" }, foot(found)),
  );
  byId("review-body").focus();
}

/** Says which attempt a plain accept takes, and lets each be taken. */
function takes(/** @type {any} */ a, /** @type {any} */ found) {
  if (a.round === found.proposed_round) return badge("accept takes this one", "info");
  return el(
    "button",
    {
      class: "plain",
      "aria-label": `Accept attempt ${a.round}`,
      onclick: () => decide({ decision: "accept", round: a.round }),
    },
    el("kbd", { text: a.round }),
    "Accept this one",
  );
}

function foot(/** @type {any} */ found) {
  const by = el(
    "label",
    { class: "by" },
    el("span", { text: "Reviewer" }),
    el("input", {
      id: "by",
      name: "by",
      required: true,
      maxlength: 64,
      autocomplete: "off",
      value: reviewer(),
      onchange: (/** @type {any} */ e) => localStorage.setItem(NAME, e.target.value.trim()),
    }),
  );
  const decided = found.decided
    ? el("p", { class: "error-text", text: `Already decided: ${found.decided}. A decision now would be refused.` })
    : null;
  if (now.doing === "edit") {
    const before = found.proposed_text;
    const area = el("textarea", {
      id: "edit-text",
      rows: Math.min(14, Math.max(4, before.split("\n").length + 1)),
      "aria-label": "The answer as it should be",
    });
    area.value = before;
    return [
      decided,
      el(
        "form",
        {
          onsubmit: (/** @type {Event} */ e) => {
            e.preventDefault();
            decide({ decision: "edit", text: area.value });
          },
        },
        area,
        el(
          "div",
          { class: "buttons" },
          el("button", { class: "primary", text: "Save and accept" }),
          el("kbd", { class: "hint", text: "Ctrl Enter" }),
          button("Esc", "Back", "plain", () => act("")),
          by,
        ),
      ),
    ];
  }
  if (now.doing === "reject") {
    const reason = el("input", {
      id: "reject-reason",
      required: true,
      maxlength: 500,
      autocomplete: "off",
      "aria-label": "What is wrong, in a sentence",
      placeholder: "What is wrong, in a sentence",
    });
    const boxes = found.rules.map((/** @type {any} */ r) =>
      el(
        "label",
        { class: "rule" },
        el("input", { type: "checkbox", value: r.id }),
        el("span", {}, el("strong", { class: "mono", text: r.id }), ` ${r.text}`),
      ),
    );
    const form = el(
      "form",
      {
        onsubmit: (/** @type {Event} */ e) => {
          e.preventDefault();
          decide({
            decision: "reject",
            reason: reason.value,
            rules: [...form.querySelectorAll("input:checked")].map(
              (box) => /** @type {HTMLInputElement} */ (box).value,
            ),
          });
        },
      },
      reason,
      el(
        "fieldset",
        {},
        el("legend", { text: "Rules it breaks" }),
        boxes.length ? boxes : el("p", { class: "muted", text: "The rubric of this task names no rules." }),
      ),
      el(
        "div",
        { class: "buttons" },
        el("button", { class: "danger", text: "Reject" }),
        el("kbd", { class: "hint", text: "Ctrl Enter" }),
        button("Esc", "Back", "plain", () => act("")),
        by,
      ),
    );
    return [decided, form];
  }
  const proposed = found.proposed_round;
  return [
    decided,
    el(
      "div",
      { class: "buttons" },
      proposed === null
        ? null
        : button("a", proposed === 0 ? "Accept the first attempt" : `Accept attempt ${proposed}`, "primary", () =>
            decide({ decision: "accept", round: proposed }),
          ),
      proposed === null ? null : button("e", "Edit and accept", "", () => act("edit")),
      button("r", "Reject", "", () => act("reject")),
      button("s", "Skip", "plain", next),
      by,
    ),
  ];
}

function button(
  /** @type {string} */ key,
  /** @type {string} */ text,
  /** @type {string} */ cls,
  /** @type {() => void} */ onclick,
) {
  return el(
    "button",
    { type: "button", class: cls, "aria-keyshortcuts": key === "Esc" ? "Escape" : key, onclick },
    el("kbd", { "aria-hidden": "true", text: key }),
    text,
  );
}

function act(/** @type {string} */ doing) {
  now.doing = doing;
  replace(byId("reviewing").querySelector(".sheet-foot"), foot(now.found));
  (document.getElementById("edit-text") ?? document.getElementById("reject-reason") ?? byId("review-body")).focus();
}

function next() {
  now.at += 1;
  return open();
}

/** One key a decision; typing in a field is typing. */
function keys(/** @type {KeyboardEvent} */ event) {
  const typing =
    (event.target instanceof HTMLInputElement && event.target.type !== "checkbox") ||
    event.target instanceof HTMLTextAreaElement;
  if (event.key === "Escape" && now.doing) {
    event.preventDefault();
    return act("");
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && now.doing)
    return byId("reviewing").querySelector("form")?.requestSubmit();
  if (typing || now.doing || event.ctrlKey || event.metaKey || event.altKey || !now.items[now.at]) return;
  const c = now.found?.story.case;
  const round = /^\d$/.test(event.key) ? Number(event.key) : null;
  if (event.key === "s") next();
  else if (!c) return;
  else if (event.key === "a" && now.found.proposed_round !== null)
    decide({ decision: "accept", round: now.found.proposed_round });
  else if (event.key === "e" && now.found.proposed_round !== null) act("edit");
  else if (event.key === "r") act("reject");
  else if (round !== null && now.found.rounds.includes(round)) decide({ decision: "accept", round });
  else return;
  event.preventDefault();
}

async function decide(/** @type {any} */ decision) {
  const field = byId("by"),
    item = now.items[now.at];
  if (!field.reportValidity() || now.busy) return;
  localStorage.setItem(NAME, field.value.trim());
  now.busy = true;
  try {
    const done = await write(`/api/review/${encodeURIComponent(item.case_id)}`, {
      by: field.value.trim(),
      ...decision,
    });
    say(
      done.stands
        ? `${words(done.decision)}: ${item.case_id} is ${done.outcome} now`
        : `Too late, this one does not count: ${done.detail}`,
      done.stands ? "ok" : "bad",
    );
    window.dispatchEvent(new CustomEvent("reviewed", { detail: item.case_id }));
    await next();
  } catch (error) {
    sayError(error);
    if (error instanceof ApiError && error.status !== 401 && (await decidedMeanwhile(item.case_id))) await next();
  } finally {
    now.busy = false;
  }
}

/** Tells whether somebody else was faster; whatever else went wrong leaves the reviewer where they are. */
async function decidedMeanwhile(/** @type {string} */ id) {
  try {
    return Boolean((await get(`/api/review/${encodeURIComponent(id)}`)).decided);
  } catch {
    return false;
  }
}

function reviewer() {
  return localStorage.getItem(NAME) ?? byId("main").dataset.reviewer ?? "";
}
