/** Choosing an instruction: the checkpoint's default, none, one of its named ones, or one's own sentence. */

import { el } from "./dom.js";

const DEFAULT = "default";
const NONE = "none";
const OWN = "own";
const NAMED = "named:";
const HELP = "A sentence before the query that says what counts as a match. Documents need none.";
const OWN_EXAMPLE = "Given a question, retrieve passages that answer it";

export class InstructionPicker {
  #select;
  #own;
  #hint;
  #info = { default_instruction: "", instructions: {} };

  constructor(root, label, onchange) {
    const id = root.id;
    this.#hint = el("p", { class: "hint", id: `${id}-hint` });
    this.#select = el("select", { id: `${id}-select`, "aria-describedby": `${id}-hint` });
    this.#own = el("input", {
      id: `${id}-own`,
      "aria-label": `${label}, in your own words`,
      "aria-describedby": `${id}-error`,
    });
    this.#own.hidden = true;
    this.#select.addEventListener("change", () => {
      this.#show();
      if (this.#select.value === OWN) this.#own.focus();
      else onchange();
    });
    root.append(
      el("label", { for: `${id}-select` }, label),
      this.#select,
      this.#own,
      this.#hint,
      el("p", { class: "field-error", id: `${id}-error`, hidden: true }),
    );
  }

  /** Offers what the checkpoint names, and keeps the choice. */
  offer(info) {
    const chosen = this.value;
    this.#info = info;
    const named = Object.keys(info.instructions).map((name) => el("option", { value: NAMED + name }, name));
    this.#select.replaceChildren(
      el("option", { value: DEFAULT }, info.default_instruction ? "Default" : "None (default)"),
      info.default_instruction ? el("option", { value: NONE }, "None") : "",
      named.length ? el("optgroup", { label: "Named by the checkpoint" }, named) : "",
      el("option", { value: OWN }, "In your own words…"),
    );
    this.value = chosen;
  }

  /** What the request's `instruction` holds; undefined for the default. */
  get value() {
    const choice = this.#select.value;
    if (choice === OWN) return this.#own.value;
    if (choice === NONE) return "";
    return choice.startsWith(NAMED) ? choice.slice(NAMED.length) : undefined;
  }

  set value(value) {
    if (value === undefined || (value === "" && !this.#info.default_instruction)) this.#select.value = DEFAULT;
    else if (value === "") this.#select.value = NONE;
    else if (Object.hasOwn(this.#info.instructions, value)) this.#select.value = NAMED + value;
    else {
      this.#select.value = OWN;
      this.#own.value = value;
    }
    this.#show();
  }

  get field() {
    return this.#own;
  }

  /** How a heading names the choice. */
  get label() {
    if (!this.sentence) return "No instruction";
    return this.#select.value === OWN ? "Own words" : (this.value ?? "Default");
  }

  /** The sentence that goes before the query. */
  get sentence() {
    const value = this.value ?? this.#info.default_instruction;
    return Object.hasOwn(this.#info.instructions, value) ? this.#info.instructions[value] : value;
  }

  /** Another choice than `other`'s, so that a comparison shows something. */
  chooseAnother(other) {
    const first = Object.keys(this.#info.instructions).find((name) => name !== other.value);
    this.value = other.sentence ? "" : (first ?? OWN_EXAMPLE);
  }

  #show() {
    const isOwn = this.#select.value === OWN;
    this.#own.hidden = !isOwn;
    this.#hint.textContent = this.sentence && !isOwn ? `“${this.sentence}”` : HELP;
  }
}
