// Questions: does the reader mean it, and what is the token. Both are <dialog>s, so focus and Escape are the browser's.

import { keepToken, post, ApiError } from "./api.js";
import { byId, el, replace } from "./dom.js";

/**
 * Asks before something is done. Resolves to the fields' values by name, or null where the reader thinks better of it.
 * @param {{title: string, body: any[], action: string, danger?: boolean, fields?: {name: string, label: string, required?: boolean, value?: string}[]}} question
 * @returns {Promise<Record<string, string> | null>}
 */
export function confirm(question) {
  const fields = (question.fields ?? []).map((field) =>
    el(
      "label",
      { class: "field" },
      el("span", { text: field.label }),
      el("input", {
        name: field.name,
        required: field.required,
        value: field.value ?? "",
        maxlength: 500,
        autocomplete: "off",
      }),
    ),
  );
  return ask(question.title, [...question.body, ...fields], question.action, question.danger);
}

/** Writes with the token, asking for it where the server wants one. */
export function write(/** @type {string} */ path, /** @type {object} */ body) {
  return post(path, body, askToken);
}

/** Asks for the token; resolves to whether one was given. */
export async function askToken(/** @type {string} */ why) {
  const given = await ask(
    "This needs the token",
    [
      el("p", { text: why }),
      el(
        "label",
        { class: "field" },
        el("span", { text: "Token" }),
        el("input", { name: "token", type: "password", required: true, autocomplete: "off", spellcheck: "false" }),
      ),
    ],
    "Use it",
  );
  if (given) keepToken(given.token);
  return given !== null;
}

/** Says in the corner, and to screen readers, what became of something. */
export function say(/** @type {string} */ text, tone = "ok") {
  const note = el(
    "div",
    { class: `toast ${tone}` },
    el("span", { text }),
    el("button", { class: "plain", "aria-label": "Dismiss", text: "Close", onclick: () => note.remove() }),
  );
  byId("toasts").append(note);
  if (tone === "ok") setTimeout(() => note.remove(), 8000);
}

/** Says what went wrong, and what to do next. */
export function sayError(/** @type {unknown} */ error) {
  const next = error instanceof ApiError && error.next ? " " + error.next : "";
  say((error instanceof Error ? error.message : String(error)) + next, "bad");
}

function ask(/** @type {string} */ title, /** @type {any[]} */ body, /** @type {string} */ action, danger = false) {
  const dialog = byId("question");
  const form = el(
    "form",
    { method: "dialog" },
    el("h2", { id: "question-title", text: title }),
    body,
    el(
      "div",
      { class: "buttons" },
      el("button", { value: "", formnovalidate: true, class: "plain", text: "Cancel" }),
      el("button", { value: "yes", class: danger ? "danger" : "primary", text: action }),
    ),
  );
  form.querySelector(".buttons").prepend(form.querySelector("button.primary, button.danger"));
  replace(dialog, form);
  dialog.showModal();
  if (!form.querySelector("input")) form.querySelector("button.plain").focus(); // Enter pressed once too often does nothing
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        resolve(dialog.returnValue === "yes" ? Object.fromEntries(new FormData(form)) : null);
        dialog.returnValue = "";
      },
      { once: true },
    );
  });
}
