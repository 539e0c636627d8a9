/** The filter of a search. Its JSON is the truth: the builder appends to it, the chips read from it and remove. */

import { byId, button, el, setFieldError } from "./dom.js";

/** Each condition that the builder knows: `must` or `must_not`, and what stands beside the key. */
const OPERATORS = {
  is: { clause: "must", build: (text) => ({ match: { value: scalar(text) } }) },
  "is not": { clause: "must_not", build: (text) => ({ match: { value: scalar(text) } }) },
  "is one of": {
    clause: "must",
    build: (text) => ({ match: { any: text.split(",").map((each) => scalar(each.trim())) } }),
  },
  "contains the words": { clause: "must", build: (text) => ({ match: { text } }) },
  "at least": { clause: "must", build: (text) => ({ range: { gte: bound(text) } }) },
  "at most": { clause: "must", build: (text) => ({ range: { lte: bound(text) } }) },
  "is present": { clause: "must", build: () => ({ is_empty: false }) },
};
const HINTS = {
  "is one of": "Separate the values by commas.",
  "at least": "A number, or a date such as 2024-05-01.",
  "at most": "A number, or a date such as 2024-05-01.",
  "is present": "Needs no value.",
};
const VALUE_HINT = '42 and true are taken for a number and a truth value; write "42" for the text.';

/** 42 as a number, true as a truth value, all else as text; quotes make text of anything. */
function scalar(text) {
  if (/^".*"$/.test(text)) return text.slice(1, -1);
  if (text === "true" || text === "false") return text === "true";
  return /^-?\d{1,15}$/.test(text) ? Number(text) : text;
}

const bound = (text) => (text.trim() && Number.isFinite(Number(text)) ? Number(text) : text);

export class FilterEditor {
  #json = byId("filter-json");
  #details = byId("filter-details");
  #onchange;
  #keys = new Set();

  constructor(onchange) {
    this.#onchange = onchange;
    const operator = byId("filter-operator");
    operator.replaceChildren(...Object.keys(OPERATORS).map((name) => el("option", {}, name)));
    operator.addEventListener("change", () => this.#showHint());
    this.#showHint();
    byId("filter-add").addEventListener("click", () => this.#addFromBuilder());
    this.#json.addEventListener("input", () => {
      this.showError();
      this.#showConditions();
    });
    for (const id of ["filter-key", "filter-value"]) {
      byId(id).addEventListener("keydown", (event) => {
        if (event.key !== "Enter") return;
        event.preventDefault(); // adds the condition rather than searching without it
        this.#addFromBuilder();
      });
    }
  }

  /** The JSON text; empty for no filter. */
  get value() {
    return this.#json.value.trim();
  }

  set value(text) {
    this.#json.value = text;
    this.showError();
    this.#showConditions();
    this.#details.open ||= Boolean(text);
  }

  /** Whether the text is JSON; if not, says so at the field. What it means is the service's to judge. */
  check() {
    try {
      if (this.value) JSON.parse(this.value);
      return true;
    } catch (error) {
      this.showError(`Not JSON: ${error.message}.`);
      return false;
    }
  }

  showError(message = "") {
    setFieldError(this.#json, message);
    if (message) this.#details.open = true;
  }

  /** Offers the keys of these documents' metadata. */
  suggestKeysOf(documents) {
    for (const document of documents) Object.keys(document.metadata).forEach((key) => this.#keys.add(key));
    byId("filter-keys").replaceChildren(...[...this.#keys].sort().map((value) => el("option", { value })));
  }

  /** Asks for documents whose metadata has this value. */
  addMatch(key, value) {
    this.#append("must", { key: pathOf(key), match: { value } });
  }

  #addFromBuilder() {
    const key = byId("filter-key");
    const value = byId("filter-value");
    const { clause, build } = OPERATORS[byId("filter-operator").value];
    const needsValue = byId("filter-operator").value !== "is present";
    if (!key.value.trim()) return key.focus();
    if (needsValue && !value.value.trim()) return value.focus();
    if (this.#append(clause, { key: key.value.trim(), ...build(value.value.trim()) })) {
      key.value = value.value = "";
      key.focus();
    }
  }

  #append(clause, condition) {
    if (!this.check()) return false;
    const filter = this.#parsed() ?? {};
    const conditions = filter[clause] === undefined ? [] : [filter[clause]].flat();
    this.#replace({ ...filter, [clause]: [...conditions, condition] });
    return true;
  }

  #remove(clause, index) {
    const filter = this.#parsed();
    const { [clause]: conditions, ...others } = filter;
    const kept = [conditions].flat().toSpliced(index, 1);
    this.#replace(kept.length ? { ...filter, [clause]: kept } : others);
    byId("filter-key").focus();
  }

  #replace(filter) {
    this.value = Object.keys(filter).length ? JSON.stringify(filter, null, 1).replace(/\n\s*/g, " ") : "";
    this.#onchange();
  }

  #parsed() {
    try {
      const filter = JSON.parse(this.value);
      return filter && typeof filter === "object" && !Array.isArray(filter) ? filter : null;
    } catch {
      return null;
    }
  }

  #showHint() {
    byId("filter-hint").textContent = HINTS[byId("filter-operator").value] ?? VALUE_HINT;
  }

  #showConditions() {
    const filter = this.#parsed() ?? {};
    const chips = Object.entries(filter).flatMap(([clause, conditions]) =>
      [conditions].flat().map((condition, index) => this.#chip(clause, condition, index)),
    );
    byId("filter-chips").replaceChildren(...chips);
    byId("filter-count").hidden = !this.value;
    byId("filter-count").textContent = chips.length || "";
  }

  #chip(clause, condition, index) {
    const text = `${{ must: "", must_not: "not: " }[clause] ?? `${clause}: `}${describe(condition)}`;
    const remove = () => this.#remove(clause, index);
    return el("li", {}, el("span", {}, text), button("×", remove, { class: "quiet", "aria-label": `Remove ${text}` }));
  }
}

function describe(condition) {
  if (typeof condition?.key !== "string") return JSON.stringify(condition);
  const { key, match, range, is_empty: isEmpty } = condition;
  if (isEmpty === false) return `${key} is present`;
  if (match && "value" in match) return `${key} is ${JSON.stringify(match.value)}`;
  if (match?.any) return `${key} is one of ${JSON.stringify(match.any).slice(1, -1)}`;
  if (match?.text) return `${key} contains ${match.text}`;
  if (range)
    return `${key} ${Object.entries(range)
      .map(([name, value]) => `${{ gte: "≥", lte: "≤", gt: ">", lt: "<" }[name] ?? name} ${value}`)
      .join(", ")}`;
  return JSON.stringify(condition);
}

/** Qdrant's spelling of a key: quotes around what would be read as a path. */
const pathOf = (key) => (/^[A-Za-z0-9_-]+$/.test(key) ? key : JSON.stringify(key));
