/** What stands in place of results where there are none: why, and what to do next. */

import { isOfThisCheckpoint } from "./context.js";
import { button, count, el } from "./dom.js";

const DEMO_QUERIES = [
  "merge two sorted lists",
  "parse a date",
  "run a command and read its output",
  "round half to even",
];

/** Before the first search; `onexample(query)` is called with an example's text. */
export function startState(collection, onexample) {
  if (!isOfThisCheckpoint(collection)) {
    const text = `${collection.name} holds vectors of another checkpoint. Choose another one, or index its documents anew.`;
    return empty("This collection cannot be searched now", text, link("See the collections", "collections"));
  }
  if (collection.documents === 0) return emptyCollection(collection.name);
  const examples = collection.name === "demo" ? DEMO_QUERIES : [];
  return empty(
    `Search ${count(collection.documents, "document")} in ${collection.name}`,
    "Ask in your own words: documents are found by meaning, not by the words they share with the query.",
    ...examples.map((query) => button(query, () => onexample(query))),
  );
}

export function emptyCollection(name) {
  const text = "Paste a few documents or choose a file; they can be searched as soon as they are in.";
  return empty(`${name} holds no documents yet`, text, link("Add documents", "add"));
}

export function nothingMatches(onclear) {
  const text = "Its conditions must hold all at once; keys and values are matched exactly.";
  return empty("No document matches the filter", text, button("Search without the filter", onclear));
}

export function unsearchable() {
  const text = "Choose another one, or create it and add documents.";
  return empty("This collection cannot be searched", text, link("See the collections", "collections"));
}

const link = (label, view) => el("a", { class: "button", href: `?view=${view}`, "data-view": view }, label);

const empty = (title, text, ...actions) =>
  el(
    "div",
    { class: "empty" },
    el("h2", {}, title),
    el("p", {}, text),
    actions.length > 0 && el("div", { class: "actions" }, actions),
  );
