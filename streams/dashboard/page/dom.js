// Making elements. Text enters the page through here, always as text: nothing is ever parsed as markup.

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 */

// Control characters but for tab and line end, and overrides of the writing direction.
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/**
 * Makes an HTML element. Keys that start with "on" are listeners, `class` and `text` mean what they say, the rest
 * are attributes; an attribute of false, null or undefined is left out.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/**
 * Makes an SVG element, as `el` does.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** Puts `children` in the place of whatever an element holds. */
export function replace(/** @type {Element} */ element, /** @type {(Child | Child[])[]} */ ...children) {
  element.replaceChildren(...nodes(children));
}

/** Returns the element of an id; the page has every id the modules ask for. @returns {any} */
export function byId(/** @type {string} */ id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element #${id}`);
  return found;
}

/** Returns what an empty panel says: what is not there, and what to do next. */
export function empty(/** @type {string} */ what, /** @type {(Child | Child[])[]} */ ...next) {
  return el("div", { class: "empty" }, el("p", { class: "empty-what", text: what }), el("p", {}, ...next));
}

/** Returns a command as code. */
export function code(/** @type {string} */ text) {
  return el("code", { text });
}

/** Returns a word in a coloured frame; `tone` is ok, warn, bad, info or quiet. */
export function badge(/** @type {string} */ text, tone = "quiet", title = "") {
  return el("span", { class: `badge ${tone}`, text, title: title || null });
}

/** Returns an instant as text, with the absolute time in its title. */
export function time(/** @type {string} */ text, /** @type {number} */ ms) {
  const at = new Date(ms);
  return el("time", { text, datetime: at.toISOString(), title: at.toLocaleString() + " (" + at.toISOString() + ")" });
}

/**
 * Returns a table. Each column is {label, numeric?, wide?}; cells are texts or nodes.
 * @param {string} caption read by screen readers
 * @param {{label: string, numeric?: boolean, wide?: boolean}[]} columns
 * @param {Child[][]} rows
 */
export function table(caption, columns, rows) {
  const cls = (/** @type {number} */ i) =>
    [columns[i].numeric && "num", columns[i].wide && "wide"].filter(Boolean).join(" ");
  const head = columns.map((column, i) => el("th", { scope: "col", class: cls(i), text: column.label }));
  const body = rows.map((row) =>
    el(
      "tr",
      {},
      row.map((cell, i) => el("td", { class: cls(i), "data-label": columns[i].label }, cell)),
    ),
  );
  return el(
    "table",
    {},
    el("caption", { class: "unseen", text: caption }),
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, body),
  );
}

/** Returns a table that becomes a list of cards on a phone. Arguments as of `table`. */
export function cards(
  /** @type {string} */ caption,
  /** @type {{label: string, numeric?: boolean, wide?: boolean}[]} */ columns,
  /** @type {Child[][]} */ rows,
) {
  const made = table(caption, columns, rows);
  made.classList.add("cards");
  return made;
}

function filled(
  /** @type {any} */ element,
  /** @type {Record<string, any>} */ attributes,
  /** @type {any[]} */ children,
) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "text") element.textContent = visible(String(value));
    else if (name === "class") element.setAttribute("class", value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

function nodes(/** @type {any[]} */ children) {
  return children
    .flat(3)
    .filter((c) => c !== null && c !== undefined && c !== false)
    .map((c) => (c instanceof Node ? c : document.createTextNode(visible(String(c)))));
}

/** Marks what does not print: a model's direction overrides would make a text show itself as another. */
function visible(/** @type {string} */ text) {
  return text.replace(HIDDEN, "\ufffd");
}
