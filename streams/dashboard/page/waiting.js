// How bad a wait is, and in which words. By age, not by count: ten thousand fresh records are a busy stage, one old
// record is a stuck one. Pure.

import { count, duration, rate } from "./format.js";

/** @typedef {"calm" | "slow" | "held" | "late" | "stuck"} Level */

export const SLOW_S = 60; // the oldest waiting record is older than this
export const LATE_S = 600; // an alert goes out at 15 minutes; see deploy/prometheus
const RANK = { calm: 0, slow: 1, held: 2, late: 3, stuck: 4 };

/**
 * Returns how bad the wait on an arrow is. `reader` is the node it leads to.
 * @param {any} edge @param {any} [reader]
 * @returns {Level}
 */
export function level(edge, reader) {
  if (!edge.lag) return "calm";
  const age = edge.oldest_s ?? 0;
  const retry = edge.kind === "retry"; // these wait on purpose
  if (reader?.state === "paused" || (reader?.state === "held" && (age > 5 || !edge.rate_per_s))) return "held";
  if (edge.members === 0 && age > 5) return "stuck";
  if (!edge.rate_per_s && age > SLOW_S && !retry) return "stuck";
  if (age > (retry ? 3600 : LATE_S)) return "late";
  return age > SLOW_S && !retry ? "slow" : "calm";
}

/** Returns the arrows where cases wait too long, the worst first, each with its level, reader and a sentence. */
export function worst(/** @type {any} */ flow) {
  const nodes = new Map(flow.nodes.map((/** @type {any} */ n) => [n.id, n]));
  return flow.edges
    .map((/** @type {any} */ edge) => ({ edge, reader: nodes.get(edge.to), level: level(edge, nodes.get(edge.to)) }))
    .filter((/** @type {any} */ f) => f.level !== "calm")
    .sort(
      (/** @type {any} */ a, /** @type {any} */ b) =>
        RANK[/** @type {Level} */ (b.level)] - RANK[/** @type {Level} */ (a.level)] ||
        (b.edge.oldest_s ?? 0) - (a.edge.oldest_s ?? 0),
    )
    .map((/** @type {any} */ f) => ({ ...f, says: sentence(f.edge, f.reader, f.level) }));
}

function sentence(/** @type {any} */ edge, /** @type {any} */ reader, /** @type {Level} */ how) {
  const waiting = `${count(edge.lag)} ${edge.lag === 1 ? "record waits" : "records wait"}`;
  const oldest = edge.oldest_s === null ? "" : `, the oldest for ${duration(edge.oldest_s)}`;
  return `${waiting}${oldest}. ${cause(edge, reader, how)}`;
}

function cause(/** @type {any} */ edge, /** @type {any} */ reader, /** @type {Level} */ how) {
  if (reader?.state === "paused") return "Paused by an operator.";
  if (how === "held") return `Held: ${reader.note || "a budget is used up or a model is down"}.`;
  if (edge.members === 0) return "Nobody reads it: start the process that does.";
  if (how === "stuck") return "Nothing moves, though it is being read: look at its log.";
  const trend = edge.trend ?? 0;
  if (trend > 0.05)
    return `Read at ${rate(edge.rate_per_s)} and growing by ${rate(trend)}: it needs more workers, or a faster model.`;
  if (trend < -0.05) return `Shrinking by ${rate(-trend)}: done in about ${duration(edge.lag / -trend)}.`;
  return `Read at ${rate(edge.rate_per_s)}, neither growing nor shrinking.`;
}
