/** The collections: what they hold, a new one, and dropping one after a question. */

import { call, collectionPath } from "./api.js";
import { chooseCollection, context, isOfThisCheckpoint, loadCollections, onCollections } from "./context.js";
import { button, byId, count, el, errorCard, grouped, openDialog, setFieldError } from "./dom.js";

const UNITS = ["bytes", "kB", "MB", "GB", "TB"];

export class CollectionsView {
  #name = byId("create-name");
  #list = byId("collections-list");

  constructor() {
    byId("create-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#create();
    });
    onCollections(() => this.#show());
  }

  /** Asks for the list again. */
  async refresh() {
    try {
      await loadCollections();
    } catch (error) {
      this.#list.replaceChildren(
        errorCard(
          error,
          button("Try again", () => this.refresh()),
        ),
      );
    }
  }

  async #create() {
    const name = this.#name.value.trim();
    setFieldError(this.#name);
    if (!name) {
      setFieldError(this.#name, "Give it a name.");
      return this.#name.focus();
    }
    const isThere = context.collections.some((each) => each.name === name);
    try {
      await call("PUT", collectionPath(name));
      this.#name.value = "";
      chooseCollection(name);
      await loadCollections();
      this.#announce(isThere ? `${name} was there already` : `${name} created`);
    } catch (error) {
      setFieldError(this.#name, error.detail);
      this.#name.focus();
    }
  }

  #announce(text) {
    byId("collections-status").textContent = text;
  }

  #show() {
    if (context.collections.length === 0) {
      this.#list.replaceChildren(
        el(
          "div",
          { class: "empty" },
          el("h2", {}, "No collections"),
          el("p", {}, "Create one above, then add documents to it."),
        ),
      );
      return;
    }
    this.#list.replaceChildren(
      el(
        "ul",
        { class: "cards" },
        context.collections.map((each) => this.#card(each)),
      ),
    );
  }

  #card(collection) {
    const { name, documents, dimension, bytes, fingerprint } = collection;
    const facts = [
      count(documents, "document"),
      bytes != null && size(bytes),
      `${grouped(dimension)} dimensions`,
    ].filter(Boolean);
    const isUsable = isOfThisCheckpoint(collection);
    const link = (label, view) =>
      el(
        "a",
        {
          class: "button",
          href: `?${new URLSearchParams({ view, collection: name })}`,
          "data-view": view,
          "aria-label": `${label} ${name}`,
        },
        label,
      );
    return el(
      "li",
      { class: "card" },
      el(
        "div",
        {},
        el("h2", {}, name, name === context.info.default_collection && el("span", { class: "tag" }, "default")),
        el("p", {}, facts.join(" · ")),
        el(
          "p",
          { class: "hint" },
          "Checkpoint ",
          el("code", {}, fingerprint.slice(0, 8)),
          isUsable ? ", the one that runs" : ", another one than runs: it can be neither searched nor added to",
        ),
      ),
      el(
        "div",
        { class: "actions" },
        isUsable && link("Search", "search"),
        isUsable && link("Add to", "add"),
        button("Drop…", () => this.#ask(collection), { class: "danger", "aria-label": `Drop ${name}` }),
      ),
    );
  }

  #ask({ name, documents }) {
    const dialog = byId("drop-dialog");
    const failure = el("p", { class: "field-error", role: "alert" });
    const drop = button(
      "Drop it",
      async () => {
        try {
          await call("DELETE", collectionPath(name));
          dialog.close();
          await this.refresh();
          this.#announce(`${name} dropped`);
          this.#name.focus(); // what had the focus is gone
        } catch (error) {
          failure.textContent = error.detail;
        }
      },
      { class: "danger filled" },
    );
    openDialog(
      dialog,
      `Drop ${name}?`,
      el(
        "p",
        {},
        documents ? `${count(documents, "document")} will be gone for good, with their vectors.` : "It is empty.",
      ),
      failure,
      el(
        "div",
        { class: "actions" },
        button("Keep it", () => dialog.close(), { autofocus: true }),
        drop,
      ),
    );
  }
}

function size(bytes) {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  const value = bytes / 1000 ** power;
  return `${value < 10 && power ? value.toFixed(1) : grouped(Math.round(value))} ${UNITS[power]}`;
}
