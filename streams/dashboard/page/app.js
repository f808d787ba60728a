// The page: follows the server's states and draws again what changed.

import { adoptToken, follow, get } from "./api.js";
import { adapters } from "./adapters.js";
import { budget, perRow, roles } from "./cost.js";
import { byId, el, replace } from "./dom.js";
import { casesOfTask, refreshCases, startCases } from "./cases.js";
import { askToken, confirm, say, sayError, write } from "./dialogs.js";
import { ago, count, duration } from "./format.js";
import { dead } from "./dead.js";
import { drawFlow, flowTable, legend, stuckList, watchWidth } from "./flow.js";
import { funnel, outcomes, passing, rules } from "./quality.js";
import { queue } from "./review.js";
import { startTheme } from "./theme.js";
import { tiles } from "./overview.js";
import { trainers } from "./training.js";
import { worst } from "./waiting.js";

const REVIEW_ITEMS = 10;
const drawn = new Map(); // by panel: the JSON it was drawn from
const page = {
  state: /** @type {any} */ (null),
  task: "",
  reviews: /** @type {any} */ (null),
  heardMs: 0,
  lost: "",
  lostMs: 0,
};

adoptToken();
startTheme();
startSections();
replace(byId("flow-legend"), legend());
watchWidth("flow-drawing", () => panel("flow-drawing", null, drawNow));
byId("task").addEventListener("change", chooseTask);
window.addEventListener("reviewed", () => loadReviews());
setInterval(sayHowFresh, 1000);
setInterval(sayHowLongAgo, 10_000);
startCases();
follow({ state: arrived, heard, lost });

function arrived(/** @type {any} */ state) {
  const before = page.state;
  const again = !before || page.lost !== ""; // the first state, or the first after the server was gone
  page.state = state;
  page.lost = "";
  heard();
  draw();
  if (again) learnAccess();
  if (again || JSON.stringify(before.review) !== JSON.stringify(state.review)) loadReviews();
  if (again || JSON.stringify(before.outcomes) !== JSON.stringify(state.outcomes)) refreshCases();
}

function draw() {
  const all = page.state,
    s = ofTask(all, page.task);
  byId("prefix").textContent = all.prefix;
  const choice = byId("task-choice");
  choice.hidden = all.tasks.length < 2;
  panel("task", all.tasks, () => [
    el("option", { value: "", text: "All tasks" }),
    ...all.tasks.map((/** @type {string} */ t) => el("option", { value: t, text: t, selected: t === page.task })),
  ]);
  panel("problems", all.problems, () => all.problems.map(problem));
  panel("overview", [s.flow.edges, s.outcomes, s.passing, s.cost, s.review, s.dead], () => tiles(s));
  panel(
    "stuck",
    stuckList(all).map((/** @type {any} */ e) => e.textContent),
    () => stuckList(all),
  );
  announce(all);
  panel("flow-drawing", all.flow, drawNow);
  panel("flow-table", all.flow, () => flowTable(all, operate));
  panel("passing", s.passing, () => passing(s.passing));
  panel("funnel", s.funnels, () => funnel(s.funnels));
  panel("outcomes", s.outcomes, () => outcomes(s.outcomes));
  panel("rules", s.violations, () => rules(s.violations));
  panel("per-row", s.cost.tasks, () => perRow(s.cost));
  panel("roles", [s.cost.roles, s.cost.ledger_usd], () => roles(s.cost));
  panel("budget", [s.cost.budgets, s.cost.held], () => budget(s.cost));
  panel("trainers", s.trainers, () => trainers(s.trainers));
  panel("adapters", s.adapters, () => adapters(s.adapters));
  panel("dead-panel", s.dead, () => dead(s.dead));
  drawReviews();
  tally("review-count", all.review.waiting_unresolved + all.review.waiting_accepted);
  tally(
    "dead-count",
    all.dead.reduce((/** @type {number} */ n, /** @type {any} */ g) => n + g.letters, 0),
    "bad",
  );
  byId("foot").textContent =
    `Topics ${all.prefix}*, tasks ${all.tasks.join(", ") || "none"}. Read every ${duration(all.refresh_s)} while a page is open.`;
}

/** Tells screen readers when a stage gets stuck or moves again, and not each time a figure changes. */
function announce(/** @type {any} */ state) {
  const text = worst(state.flow)
    .map((/** @type {any} */ w) => `${w.reader?.label ?? w.edge.to} is ${w.level}.`)
    .join(" ");
  const here = byId("announced");
  const said = text || (here.textContent ? "Everything flows again." : "");
  if (here.textContent !== said) here.textContent = said;
}

/** Draws a panel where what it shows has changed, and gives the keyboard back its place. */
function panel(/** @type {string} */ id, /** @type {any} */ shows, /** @type {() => any} */ render) {
  const key = JSON.stringify(shows);
  if (shows !== null && drawn.get(id) === key) return;
  drawn.set(id, key);
  const here = byId(id),
    active = /** @type {HTMLElement | null} */ (document.activeElement);
  const focus =
    active && here.contains(active)
      ? (active.dataset.focus ?? active.closest("[data-focus]")?.getAttribute("data-focus"))
      : null;
  const open = [...here.querySelectorAll("details")].map((d) => d.open);
  replace(here, render() ?? []);
  here.querySelectorAll("details").forEach((/** @type {any} */ d, /** @type {number} */ i) => {
    d.open = open[i] ?? false;
  });
  if (focus) here.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
}

function drawNow() {
  const width = byId("flow-drawing").clientWidth;
  return page.state && width ? drawFlow(page.state, width) : [];
}

function drawReviews() {
  if (page.reviews)
    panel("review-panel", [page.state.review, page.reviews], () => queue(page.state.review, page.reviews));
}

async function loadReviews() {
  try {
    page.reviews = await get(`/api/review?${new URLSearchParams({ task: page.task, limit: String(REVIEW_ITEMS) })}`);
    drawReviews();
  } catch (error) {
    replace(
      byId("review-panel"),
      el("p", { class: "error-text", text: error instanceof Error ? error.message : String(error) }),
    );
    drawn.delete("review-panel");
  }
}

async function learnAccess() {
  try {
    const access = await get("/api/access");
    byId("main").dataset.reviewer = access.reviewer;
    if (access.reads_need_token && access.write) await write("/api/session", {});
  } catch {
    // The states say soon enough that the server is gone.
  }
}

function chooseTask() {
  page.task = byId("task").value;
  page.reviews = null;
  draw();
  casesOfTask(page.task);
  loadReviews();
}

/** Returns the state with what belongs to one task; the flow, shared by all, stays whole. */
function ofTask(/** @type {any} */ state, /** @type {string} */ task) {
  if (!task) return state;
  const only = (/** @type {any[]} */ items) => items.filter((item) => item.task === task);
  const { cost } = state;
  return {
    ...state,
    ...Object.fromEntries(
      ["funnels", "passing", "outcomes", "violations", "trainers", "adapters", "dead"].map((k) => [k, only(state[k])]),
    ),
    cost: {
      ...cost,
      tasks: only(cost.tasks),
      roles: only(cost.roles),
      budgets: only(cost.budgets),
      held: only(cost.held),
    },
  };
}

async function operate(/** @type {string} */ stage, /** @type {string} */ action) {
  const said =
    action === "pause"
      ? `Cases wait before ${stage} until it is resumed. Nothing is lost; lag grows.`
      : `${stage} goes on with what waits.`;
  if (
    !(await confirm({
      title: `${action === "pause" ? "Pause" : "Resume"} ${stage}?`,
      body: [el("p", { text: said })],
      action: action === "pause" ? "Pause" : "Resume",
    }))
  )
    return;
  try {
    say((await write(`/api/stages/${stage}/${action}`, {})).detail);
  } catch (error) {
    sayError(error);
  }
}

function problem(/** @type {any} */ p) {
  const s = (Date.now() - p.since_ms) / 1000;
  return el(
    "div",
    { class: p.part === "kafka" ? "problem" : "problem warn" },
    el("strong", { text: `Not known: ${p.part}` }),
    el("span", { text: p.why }),
    s > 5 ? el("span", { text: `for ${duration(s)}` }) : null,
  );
}

function heard() {
  page.heardMs = Date.now();
  if (page.state) sayHowFresh();
}

function lost(/** @type {any} */ error) {
  if (!page.lost) page.lostMs = page.heardMs || Date.now();
  page.lost = error.message + (error.next ? ` ${error.next}` : "");
  if (error.status === 401 && !byId("question").open) askToken(page.lost);
  sayHowFresh();
}

/** Says whether what is shown is live; changes the text only when it changes, so that screen readers hear it once. */
function sayHowFresh() {
  const quiet = (Date.now() - page.heardMs) / 1000;
  const limit = Math.max(6, 3 * (page.state?.refresh_s ?? 2));
  let [text, tone] = ["Live", "ok"];
  if (page.lost)
    [text, tone] = [
      page.heardMs
        ? `Server gone, figures are ${roughly((Date.now() - page.lostMs) / 1000)} old`
        : "Server does not answer",
      "bad",
    ];
  else if (!page.heardMs) [text, tone] = ["Connecting", "quiet"];
  else if (quiet > limit) [text, tone] = [`Stale, nothing heard for ${roughly(quiet)}`, "warn"];
  else if (page.state?.problems.some((/** @type {any} */ p) => p.part === "kafka"))
    [text, tone] = ["Live, but Kafka does not answer", "warn"];
  const live = byId("live");
  if (live.textContent !== text) live.textContent = text;
  live.dataset.tone = tone;
  live.title = page.lost;
  document.body.classList.toggle("old", tone === "bad" || (tone === "warn" && quiet > limit));
}

/** Lets every "12 s ago" of the page grow old with the page. */
function sayHowLongAgo() {
  for (const shown of document.querySelectorAll("time")) {
    if (/ ago$|^just now$/.test(shown.textContent ?? "")) shown.textContent = ago(Date.parse(shown.dateTime));
  }
}

function roughly(/** @type {number} */ s) {
  return duration(s < 60 ? Math.floor(s / 10) * 10 || 1 : s);
}

function tally(/** @type {string} */ id, /** @type {number} */ n, tone = "") {
  const here = byId(id);
  here.hidden = !n;
  here.className = `tally ${tone}`;
  here.textContent = count(n);
}

/** Marks the section in view in the navigation. */
function startSections() {
  const links = new Map(
    [...document.querySelectorAll(".tabs a")].map((a) => [/** @type {HTMLAnchorElement} */ (a).hash.slice(1), a]),
  );
  const seen = new Set();
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
      const first = [...links.keys()].find((id) => seen.has(id));
      for (const [id, link] of links)
        id === first ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
    },
    { rootMargin: "-110px 0px -45% 0px" },
  );
  for (const id of links.keys()) observer.observe(byId(id));
}
