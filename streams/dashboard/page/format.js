// Numbers as people read them: short, with their unit. Everything here is pure.

const ABSENT = "–"; // an en dash: not known, or nothing to know

/** 1234 → "1,234"; 1234567 → "1.23M". */
export function count(/** @type {number | null | undefined} */ n) {
  if (n === null || n === undefined || !Number.isFinite(n)) return ABSENT;
  if (Math.abs(n) >= 1e9) return trimmed(n / 1e9) + "G";
  if (Math.abs(n) >= 1e6) return trimmed(n / 1e6) + "M";
  if (Math.abs(n) >= 1e5) return trimmed(n / 1e3) + "k";
  return Math.round(n).toLocaleString("en-US");
}

/** Share from 0 to 1 → "74.5 %". */
export function percent(/** @type {number | null | undefined} */ share, digits = 1) {
  if (share === null || share === undefined || !Number.isFinite(share)) return ABSENT;
  return `${(share * 100).toFixed(digits)} %`;
}

/** Difference of two shares → "+13.5 pts". */
export function points(/** @type {number} */ difference) {
  return `${difference >= 0 ? "+" : "−"}${Math.abs(difference * 100).toFixed(1)} pts`;
}

/** Dollars → "$0", "$0.0042", "$1.25", "$12,400". */
export function money(/** @type {number | null | undefined} */ usd) {
  if (usd === null || usd === undefined || !Number.isFinite(usd)) return ABSENT;
  if (usd === 0) return "$0";
  const size = Math.abs(usd);
  if (size < 1e-6) return `$${usd.toExponential(1)}`;
  if (size < 1) return `$${usd.toPrecision(2).replace(/0+$/, "").replace(/\.$/, "")}`;
  if (size < 1000) return `$${usd.toFixed(2)}`;
  return `$${Math.round(usd).toLocaleString("en-US")}`;
}

/** Seconds → "0.4 s", "12 s", "3 min", "2.5 h", "4 d". */
export function duration(/** @type {number | null | undefined} */ s) {
  if (s === null || s === undefined || !Number.isFinite(s)) return ABSENT;
  if (s < 0.0005) return "0 s";
  if (s < 1) return `${Math.max(1, Math.round(s * 1000))} ms`;
  if (s < 10) return `${trimmed(s, 1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${trimmed(s / 3600, 1)} h`;
  return `${trimmed(s / 86400, 1)} d`;
}

/** Records a second → "0/s", "0.25/s", "3.4/s", "1,200/s". */
export function rate(/** @type {number | null | undefined} */ perSecond) {
  if (perSecond === null || perSecond === undefined || !Number.isFinite(perSecond)) return `${ABSENT}/s`;
  if (perSecond === 0) return "0/s";
  if (perSecond < 0.01) return "<0.01/s";
  if (perSecond < 1) return `${trimmed(perSecond, 2)}/s`;
  if (perSecond < 100) return `${trimmed(perSecond, 1)}/s`;
  return `${count(perSecond)}/s`;
}

/** A p-value → "0.031", "< 0.0001". */
export function pValue(/** @type {number | null | undefined} */ p) {
  if (p === null || p === undefined || !Number.isFinite(p)) return ABSENT;
  return p < 1e-4 ? "< 0.0001" : p.toPrecision(2);
}

/** Instant → "12 s ago", or the date where it is more than two days back. */
export function ago(/** @type {number | null | undefined} */ ms, now = Date.now()) {
  if (!ms) return ABSENT;
  const s = Math.max(0, (now - ms) / 1000);
  return s < 2 ? "just now" : s > 172800 ? clock(ms, true) : `${duration(s)} ago`;
}

/** Instant → "14:05", with the date where asked for. */
export function clock(/** @type {number} */ ms, withDate = false) {
  const hours = new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
  return withDate ? `${new Date(ms).toLocaleDateString([], { month: "short", day: "numeric" })} ${hours}` : hours;
}

/** "1 case", "2 cases". */
export function plural(/** @type {number} */ n, /** @type {string} */ noun, many = noun + "s") {
  return `${count(n)} ${n === 1 ? noun : many}`;
}

/** A version directory's name without its run id: "v0007-3fa9c2d1" → "v0007"; "" is the base. */
export function version(/** @type {string | null | undefined} */ name) {
  return !name ? "base" : name.split("-")[0];
}

/** A reason's key as words: "model_rate_limited" → "model rate limited". */
export function words(/** @type {string} */ key) {
  return key.replaceAll("_", " ");
}

/** A text cut to `limit` characters, on one line. */
export function clip(/** @type {string | null | undefined} */ text, limit = 160) {
  const line = (text ?? "").replace(/\s+/g, " ").trim();
  return line.length > limit ? line.slice(0, limit - 1) + "…" : line;
}

function trimmed(/** @type {number} */ n, digits = 2) {
  const text = n.toFixed(digits);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}
