/** Searching: from the form to results. A newer search ends the older one, so that answers never come out of order. */

import { writeAddress } from "./address.js";
import { call, documentPath } from "./api.js";
import { chooseCollection, chosenCollection, context, fillCollections, onCollections } from "./context.js";
import { showCode, showDocument } from "./dialogs.js";
import { button, byId, count, el, errorCard, grouped, milliseconds, openDialog, setFieldError } from "./dom.js";
import { FilterEditor } from "./filter.js";
import { InstructionPicker } from "./instruction.js";
import { comparison, describeMoves, resultList, timings } from "./results.js";
import { searchBody } from "./snippets.js";
import { emptyCollection, nothingMatches, startState, unsearchable } from "./states.js";

const DEFAULT_TOP_K = 10;
const SLOW_AFTER_MS = 1500;

export class SearchView {
  #query = byId("query");
  #topK = byId("top-k");
  #collection = byId("collection");
  #isComparing = byId("compare");
  #first = new InstructionPicker(byId("instruction-a"), "Instruction", () => this.again());
  #second = new InstructionPicker(byId("instruction-b"), "Second instruction", () => this.again());
  #filter = new FilterEditor(() => this.again());
  #results = byId("results");
  #running = null;
  #hasAnswer = false;

  constructor() {
    byId("search-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.#collection.addEventListener("change", () => {
      chooseCollection(this.#collection.value);
      this.again();
    });
    this.#topK.addEventListener("change", () => this.again());
    this.#isComparing.addEventListener("change", () => {
      this.#showSecond();
      if (this.#isComparing.checked) this.#second.chooseAnother(this.#first);
      this.again();
    });
    onCollections(() => {
      fillCollections(this.#collection);
      if (!this.#hasAnswer && !this.#running) this.#showStart();
    });
  }

  /** Offers the checkpoint's instructions. */
  offer(info) {
    this.#first.offer(info);
    this.#second.offer(info);
    this.#topK.max = info.limits.max_top_k;
  }

  /** Fills the form from the address and searches if it holds a query. */
  restore(address) {
    this.#query.value = address.q ?? "";
    this.#first.value = address.instruction;
    this.#isComparing.checked = address.compare !== undefined;
    this.#second.value = address.compare;
    this.#showSecond();
    this.#topK.value = address.top_k ?? DEFAULT_TOP_K;
    this.#filter.value = address.filter ?? "";
    if (address.document !== undefined) this.#openById(address.document);
    if (address.q) this.run({ isNew: false });
    else this.#showStart();
  }

  focus() {
    this.#query.focus();
  }

  /** The address of what the form says. */
  address() {
    return {
      q: this.#query.value.trim() || undefined,
      instruction: this.#first.value,
      compare: this.#isComparing.checked ? (this.#second.value ?? context.info?.default_instruction ?? "") : undefined,
      collection: context.collection || undefined,
      top_k: Number(this.#topK.value) === DEFAULT_TOP_K ? undefined : this.#topK.value,
      filter: this.#filter.value || undefined,
    };
  }

  /** Searches anew if there is a query. */
  again() {
    if (this.#query.value.trim()) this.run();
  }

  /** Searches; `truncate` cuts a query over the model's length, `isNew` is false where the address says it already. */
  async run({ truncate = false, isNew = true } = {}) {
    this.#running?.abort();
    if (!this.#check()) return;
    const running = (this.#running = new AbortController());
    writeAddress(this.address(), { replace: !isNew });
    const searches = this.#pickers().map((picker) => ({ ...this.#search(picker), truncate: truncate || undefined }));
    const slow = setTimeout(() => this.#showSlow(), SLOW_AFTER_MS);
    this.#showBusy();
    try {
      const answers = await Promise.all(searches.map((search) => this.#ask(search, running.signal)));
      if (!running.signal.aborted) this.#show(answers, searches);
    } catch (error) {
      if (!running.signal.aborted) this.#showError(error);
      running.abort(); // its other half, if there is one
    } finally {
      clearTimeout(slow);
      if (this.#running === running) this.#showIdle();
    }
  }

  #pickers() {
    return this.#isComparing.checked ? [this.#first, this.#second] : [this.#first];
  }

  #search(picker) {
    return {
      query: this.#query.value.trim(),
      instruction: picker.value,
      topK: this.#topK.valueAsNumber,
      collection: context.collection || undefined,
      filter: this.#filter.value,
    };
  }

  async #ask(search, signal) {
    const started = performance.now();
    const answer = await call("POST", "search", { body: searchBody(search), signal });
    return { ...answer, roundTripMs: performance.now() - started };
  }

  #check() {
    const isNumber = Number.isInteger(this.#topK.valueAsNumber);
    for (const field of [this.#query, this.#collection, this.#first.field]) setFieldError(field);
    setFieldError(this.#topK, isNumber ? "" : "A whole number.");
    this.#filter.showError();
    if (!this.#query.value.trim()) {
      setFieldError(this.#query, "Write what you are looking for.");
      this.#query.focus();
      return false;
    }
    if (!isNumber) this.#topK.focus();
    return isNumber && this.#filter.check();
  }

  #showSecond() {
    byId("second").hidden = !this.#isComparing.checked;
  }

  /** Shows these in place of the results; the focus stays there if it was. */
  #replace(...nodes) {
    if (this.#results.contains(document.activeElement)) this.#results.focus();
    this.#results.replaceChildren(...nodes);
  }

  #showBusy() {
    this.#results.setAttribute("aria-busy", "true");
    byId("search-status").textContent = "Searching";
    if (!this.#hasAnswer) this.#replace(el("div", { class: "skeleton" }, el("span"), el("span"), el("span")));
  }

  #showSlow() {
    const cancel = button("Stop waiting", () => {
      this.#running?.abort();
      this.#showIdle();
      if (!this.#hasAnswer) this.#showStart();
    });
    const why =
      "Still searching. The first search after a start takes longer, and so do searches while documents are added.";
    byId("search-status").textContent = why;
    this.#results.prepend(el("div", { class: "notice", id: "slow" }, el("p", {}, why), cancel));
  }

  #showIdle() {
    this.#running = null;
    this.#results.removeAttribute("aria-busy");
    byId("slow")?.remove();
  }

  #show(answers, searches) {
    const [{ results, took_ms: tookMs, truncated }] = answers;
    this.#hasAnswer = true;
    byId("search-status").textContent = `${count(results.length, "result")} in ${milliseconds(tookMs.total)}`;
    this.#filter.suggestKeysOf(answers.flatMap((answer) => answer.results));
    if (answers.every((answer) => answer.results.length === 0)) return this.#replace(this.#nothing());
    const title = answers.length > 1 ? "Search A as code" : "This search as code";
    const head = el(
      "div",
      { class: "results-head" },
      el(
        "p",
        {},
        el("strong", {}, count(results.length, "result")),
        ` from ${context.collection}`,
        answers.length > 1 && `: ${describeMoves(results, answers[1].results)}`,
      ),
      button("Copy as curl or Python", () => showCode(title, searches[0])),
    );
    const cut =
      truncated.length > 0 &&
      el("p", { class: "notice" }, `The query was over ${grouped(context.info.max_length)} tokens and was cut.`);
    this.#replace(head, cut || "", answers.length > 1 ? this.#compared(answers) : this.#listed(answers[0]));
  }

  #listed(answer) {
    const onmatch = (key, value) => this.#filter.addMatch(key, value);
    return el(
      "div",
      { class: "with-aside" },
      resultList(answer.results, { onopen: (hit) => this.#open(hit), onmatch }),
      el("aside", { "aria-label": "About this search" }, timings(answer.took_ms, answer.roundTripMs)),
    );
  }

  #compared(answers) {
    const labels = this.#pickers().map(({ label, sentence }) => ({ label, sentence }));
    const times = answers.map((answer, side) => timings(answer.took_ms, answer.roundTripMs, `Time of ${"AB"[side]}`));
    return el(
      "div",
      {},
      comparison(answers, { labels, onopen: (hit) => this.#open(hit) }),
      el("div", { class: "times" }, times),
    );
  }

  #nothing() {
    if (!this.#filter.value) return emptyCollection(context.collection);
    return nothingMatches(() => {
      this.#filter.value = "";
      this.run();
    });
  }

  #showStart() {
    this.#hasAnswer = false;
    const collection = chosenCollection();
    if (!collection) return this.#replace();
    const search = (query) => {
      this.#query.value = query;
      this.run();
    };
    this.#replace(startState(collection, search));
  }

  #showError(error) {
    const field = this.#fieldOf(error);
    byId("search-status").textContent = error.title;
    if (field === this.#filter) this.#filter.showError(error.detail);
    else if (field) setFieldError(field, error.detail);
    const actions = [];
    if (error.code === "text_too_long") actions.push(button("Cut it and search", () => this.run({ truncate: true })));
    else if (error.status === 401 || error.status === 403) actions.push(button("Enter a key", enterKey));
    else if (!field) actions.push(button("Try again", () => this.run()));
    this.#hasAnswer = false;
    if (field === this.#collection) this.#replace(unsearchable());
    else if (actions.length > 0) this.#replace(errorCard(error, ...actions));
    else this.#replace();
    if (field) (field === this.#filter ? byId("filter-json") : field).focus();
  }

  /** The field that an error is about, if it is about one. */
  #fieldOf(error) {
    if (error.code === "invalid_filter") return this.#filter;
    if (error.status === 404 || error.status === 409) return this.#collection;
    if (error.status !== 422) return null;
    const name = (error.errors[0]?.location ?? error.detail).match(/^\w+/)?.[0];
    const fields = { query: this.#query, top_k: this.#topK, collection: this.#collection, filter: this.#filter };
    return name === "instruction" && !this.#first.field.hidden ? this.#first.field : (fields[name] ?? null);
  }

  #open(document) {
    showDocument(document);
    writeAddress({ ...this.address(), document: document.id }, { replace: true });
  }

  async #openById(id) {
    try {
      this.#open(await call("GET", documentPath(id, context.collection)));
    } catch (error) {
      openDialog(byId("document-dialog"), "This document cannot be shown", el("p", {}, error.detail));
    }
  }
}

function enterKey() {
  byId("settings").open = true;
  byId("key").focus();
}
