// Light or dark: the system's choice, or the reader's own, which this browser remembers.

import { byId } from "./dom.js";

const KEY = "goldstream.theme";
const CHOICES = ["system", "light", "dark"];

/** Applies what was chosen before and lets the button choose. */
export function startTheme() {
  const button = byId("theme");
  let choice = localStorage.getItem(KEY) ?? "system";
  const apply = () => {
    if (choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    button.textContent = choice[0].toUpperCase() + choice.slice(1);
    button.setAttribute("aria-label", `Colours: ${choice}. Change`);
    button.title = "Colours: the system's, light, or dark";
  };
  button.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    localStorage.setItem(KEY, choice);
    apply();
  });
  apply();
}
