// Adapters: who serves, what the gate found of each version, promotion and rollback.

import { get } from "./api.js";
import { badge, byId, cards, code, el, empty, replace, svg, time } from "./dom.js";
import { confirm, say, sayError, write } from "./dialogs.js";
import { ago, count, percent, points, pValue, version } from "./format.js";

const TONES = {
  serves: "ok",
  canary: "info",
  coming: "info",
  waits: "warn",
  refused: "bad",
  undecided: "quiet",
  removed: "quiet",
};
const SAID = { waits: "waits for a decision" };

/** Returns each task's adapters with their gates. `refresh` asks for a new state. */
export function adapters(/** @type {any[]} */ all) {
  return all.map((a) =>
    el(
      "div",
      { class: "panel", role: "group", "aria-label": `Adapters of ${a.task}` },
      el(
        "div",
        { class: "adapters-head" },
        el("h3", { text: `Adapters of ${a.task}` }),
        serving(a),
        el("button", {
          "data-focus": `rollback-${a.task}`,
          disabled: !a.can_roll_back,
          text: a.can_roll_back
            ? `Roll back to ${version(a.roll_back_to === "base" ? "" : a.roll_back_to)}…`
            : "Nothing to roll back to",
          onclick: () => rollBack(a),
        }),
      ),
      a.watch ? el("p", { class: "hint", text: `Live guard: ${a.watch}` }) : null,
      Object.entries(a.errors).map(([step, what]) =>
        el("p", { class: "error-text", text: `Rollout, ${step}: ${what}` }),
      ),
      Object.keys(a.servers).length
        ? el(
            "p",
            { class: "servers" },
            "Model servers: ",
            Object.entries(a.servers).map(([n, s]) =>
              badge(`${n} ${s}`, s === "serves" ? "ok" : s === "failing" ? "bad" : "quiet"),
            ),
          )
        : null,
      commands(a.commands),
      a.versions.length
        ? versions(a)
        : empty(
            "No adapter has been trained yet.",
            "A run starts when enough corrected rows have come, or now with ",
            code("goldstream trainer once"),
            ".",
          ),
    ),
  );
}

function serving(/** @type {any} */ a) {
  const who =
    a.serving === "" ? "nothing announced yet" : a.serving === "base" ? "the base serves" : `${a.serving} serves`;
  const canary = a.canary_share
    ? `, ${percent(a.canary_share, 0)} of the cases stay on ${a.previous === "base" || !a.previous ? "the base" : version(a.previous)}`
    : "";
  const behind = a.wanted !== a.serving && a.serving ? `, and ${a.wanted} should` : "";
  return el(
    "p",
    { class: "serving" },
    who,
    a.since_ms ? [", announced ", time(ago(a.since_ms), a.since_ms)] : "",
    canary + behind,
  );
}

function versions(/** @type {any} */ a) {
  const rows = a.versions.map((/** @type {any} */ v) => {
    const g = v.gate,
      live = v.live_judged ? `${percent(v.live_passed / v.live_judged)} of ${count(v.live_judged)}` : "–";
    const gate = g
      ? el(
          "span",
          { class: "gate", title: g.reason },
          dumbbell(g.before, g.after),
          el("span", { text: `${percent(g.before)} → ${percent(g.after)}` }),
        )
      : el("span", { class: "muted", text: "not gated" });
    const buttons = [
      v.report
        ? el("button", {
            "data-focus": `report-${v.version}`,
            text: "Report",
            "aria-label": `Gate report of ${v.version}`,
            onclick: () => openReport(a.task, v.version),
          })
        : null,
      v.can_promote
        ? el("button", {
            "data-focus": `promote-${v.version}`,
            text: "Promote…",
            "aria-label": `Promote ${v.version}`,
            onclick: () => promote(a, v),
          })
        : null,
    ];
    return [
      el("span", { class: "mono", text: v.version }),
      badge(
        /** @type {Record<string, string>} */ (SAID)[v.state] ?? v.state,
        /** @type {Record<string, string>} */ (TONES)[v.state] ?? "quiet",
      ),
      gate,
      g ? `${points(g.after - g.before)}, +${g.gained} −${g.lost} of ${count(g.cases)}` : "–",
      g ? pValue(g.p_value) : "–",
      live,
      count(v.rows),
      time(ago(v.created_ms), v.created_ms),
      el("span", { class: "row-buttons" }, buttons),
    ];
  });
  const shown = cards(
    `Adapter versions of ${a.task}, newest first`,
    [
      { label: "Version" },
      { label: "State" },
      { label: "Holdout, before → after" },
      { label: "Change" },
      { label: "p", numeric: true },
      { label: "Live first attempts", numeric: true },
      { label: "Rows", numeric: true },
      { label: "Trained" },
      { label: "" },
    ],
    rows,
  );
  return el(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": `Adapter versions of ${a.task}` },
    shown,
  );
}

/** Two dots on a line from 0 to 1: before and after. */
function dumbbell(/** @type {number} */ before, /** @type {number} */ after) {
  const x = (/** @type {number} */ share) => 5 + share * 70;
  return svg(
    "svg",
    { width: 80, height: 14, class: after >= before ? "dumbbell up" : "dumbbell down", "aria-hidden": "true" },
    svg("line", { x1: 5, x2: 75, y1: 7, y2: 7, class: "rail" }),
    svg("line", { x1: x(before), x2: x(after), y1: 7, y2: 7, class: "way" }),
    svg("circle", { cx: x(before), cy: 7, r: 3.5, class: "before" }),
    svg("circle", { cx: x(after), cy: 7, r: 4.5, class: "after" }),
  );
}

function commands(/** @type {any[]} */ asked) {
  if (!asked.length) return null;
  const tone = { done: "ok", refused: "bad", asked: "info" };
  return el(
    "ul",
    { class: "commands", "aria-label": "Asked of rollout" },
    asked
      .slice(0, 3)
      .map((c) =>
        el(
          "li",
          {},
          badge(c.result === "asked" ? "under way" : c.result, tone[/** @type {"done"} */ (c.result)]),
          ` ${c.action} ${c.action === "rollback" ? "of " : ""}${version(c.version === "base" ? "" : c.version)}`,
          c.by ? ` by ${c.by}` : "",
          c.reason ? `: ${c.reason}` : "",
          c.detail ? el("span", { class: "muted", text: ` ${c.detail}` }) : null,
          " ",
          time(ago(c.at_ms), c.at_ms),
        ),
      ),
  );
}

async function rollBack(/** @type {any} */ a) {
  const given = await confirm({
    title: `Roll ${a.task} back to ${a.roll_back_to}?`,
    body: [
      el("p", {
        text: `${a.serving} stops serving. Cases that start from now on are answered by ${a.roll_back_to}; the trainer goes on.`,
      }),
    ],
    action: "Roll back",
    danger: true,
    fields: [{ name: "reason", label: "Why (kept in the promotion log)", required: true }],
  });
  if (given)
    await ask(a, "rollback", {
      reason: given.reason,
      version: a.serving === "" ? "" : a.wanted,
      promotions: a.promotions,
    });
}

async function promote(/** @type {any} */ a, /** @type {any} */ v) {
  const gate = v.gate ? `The gate: ${v.gate.reason}` : "The gate has not judged this version.";
  const given = await confirm({
    title: `Promote ${v.version}?`,
    body: [
      el("p", { text: gate }),
      v.needs_force
        ? el("p", {
            class: "error-text",
            text: "The gate did not pass it. Promoting it all the same is your decision.",
          })
        : null,
      el("p", { text: `It takes the place of ${a.wanted} once every model server has answered with it.` }),
    ],
    action: v.needs_force ? "Promote against the gate" : "Promote",
    danger: v.needs_force,
    fields: [{ name: "reason", label: "Why (kept in the promotion log)", required: true }],
  });
  if (given)
    await ask(a, "promote", {
      reason: given.reason,
      version: v.version,
      promotions: a.promotions,
      force: v.needs_force,
    });
}

async function ask(/** @type {any} */ a, /** @type {string} */ action, /** @type {any} */ body) {
  try {
    const access = await get("/api/access");
    const asked = await write(`/api/adapters/${encodeURIComponent(a.task)}/${action}`, {
      by: access.reviewer,
      ...body,
    });
    const done =
      { asked: "asked for; rollout answers in a moment", done: "done", refused: "refused" }[
        /** @type {"asked"} */ (asked.result)
      ] ?? asked.result;
    say(
      `${action} ${version(asked.version)}: ${done}${asked.detail ? `. ${asked.detail}` : ""}`,
      asked.result === "refused" ? "bad" : "ok",
    );
  } catch (error) {
    sayError(error);
  }
}

/** Shows a gate's report in a frame that runs no script. */
async function openReport(/** @type {string} */ task, /** @type {string} */ name) {
  const dialog = byId("report"),
    where = `/api/adapters/${encodeURIComponent(task)}/${encodeURIComponent(name)}/report`;
  replace(
    dialog,
    el(
      "div",
      { class: "sheet-bar" },
      el("h2", { id: "report-title", text: `Gate report of ${name}` }),
      el("button", { class: "plain", text: "Close", onclick: () => dialog.close() }),
    ),
    el("iframe", { sandbox: "", src: where, title: `Gate report of ${name}` }),
  );
  dialog.showModal();
}
