/** What all views share: the running checkpoint, the collections, and the one that is chosen. */

import { call } from "./api.js";
import { el, grouped } from "./dom.js";

export const context = { info: null, collections: [], collection: "" };

const listeners = [];

/** Calls `listener` whenever collections or the chosen one change. */
export const onCollections = (listener) => listeners.push(listener);

const announce = () => listeners.forEach((listener) => listener());

export async function loadInfo() {
  context.info = await call("GET", "info");
}

/** Loads the list; without a choice so far takes one of it. */
export async function loadCollections() {
  context.collections = (await call("GET", "collections")).collections;
  context.collection ||= firstChoice(context.info.default_collection);
  announce();
}

/** The default collection or, where that holds nothing, the demo; of those that a key is for, if it is for neither, one. */
function firstChoice(fallback) {
  const names = context.collections.map((each) => each.name);
  const filled = context.collections.filter((each) => each.documents > 0).map((each) => each.name);
  const wanted = [fallback, "demo"].find((name) => filled.includes(name));
  return wanted ?? (names.includes(fallback) ? fallback : (filled[0] ?? names[0] ?? fallback));
}

export function chooseCollection(name) {
  context.collection = name;
  announce();
}

export const chosenCollection = () => context.collections.find((each) => each.name === context.collection);

/** Whether its vectors are of the checkpoint that runs; others are refused by the service. */
export const isOfThisCheckpoint = (collection) => collection.fingerprint === context.info.fingerprint;

/** A select of all collections; one that is not there is offered as such, so that its error can be seen. */
export function fillCollections(select) {
  const names = context.collections.map((each) => each.name);
  const options = context.collections.map((each) => {
    const note = isOfThisCheckpoint(each) ? grouped(each.documents) : "other checkpoint";
    return el("option", { value: each.name }, `${each.name} (${note})`);
  });
  if (!names.includes(context.collection)) {
    options.unshift(el("option", { value: context.collection }, `${context.collection} (not there)`));
  }
  select.replaceChildren(...options);
  select.value = context.collection;
}
