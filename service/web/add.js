/** Adding documents: counted first, then sent in batches, so that progress is what the service has confirmed. */

import { call } from "./api.js";
import { chooseCollection, context, fillCollections, loadCollections, onCollections } from "./context.js";
import { button, byId, count, el, errorCard, grouped, setFieldError } from "./dom.js";
import { readItems, textChunks } from "./items.js";

const MAX_BATCH_ITEMS = 64;
const MAX_BATCH_CHARS = 500_000;
const MAX_WAITS = 10; // for a busy service, in one batch
const MAX_SHOWN_FAILURES = 100;
const EXAMPLE = `{"id": "sleep", "title": "Sleep", "text": "Cats sleep twelve to sixteen hours a day.", "metadata": {"topic": "cats", "year": 2021}}
{"id": "purr", "title": "Purring", "text": "A cat purrs by twitching the muscles of its larynx.", "metadata": {"topic": "cats", "year": 2023}}
{"id": "bark", "title": "Barking", "text": "Dogs bark to warn, to greet and to call for attention.", "metadata": {"topic": "dogs", "year": 2022}}
`;

export class AddView {
  #collection = byId("add-collection");
  #file = byId("add-file");
  #text = byId("add-text");
  #report = byId("add-report");
  #running = null;

  constructor() {
    byId("add-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.#running) this.#run();
    });
    byId("add-example").addEventListener("click", () => {
      this.#text.value = EXAMPLE;
      this.#text.focus();
    });
    this.#file.addEventListener("change", () => this.#showSource());
    byId("add-remove").addEventListener("click", () => {
      this.#file.value = "";
      this.#showSource();
      this.#file.focus();
    });
    byId("add-stop").addEventListener("click", () => this.#running?.abort());
    this.#collection.addEventListener("change", () => chooseCollection(this.#collection.value));
    onCollections(() => fillCollections(this.#collection));
  }

  /** Names the checkpoint's limit. */
  offer(info) {
    byId("add-truncate-label").textContent =
      `Cut texts over ${grouped(info.max_length)} tokens instead of refusing them`;
  }

  /** A file is taken instead of what is pasted, and it shows. */
  #showSource() {
    const hasFile = this.#file.files.length > 0;
    this.#text.disabled = byId("add-example").disabled = hasFile;
    byId("add-remove").hidden = !hasFile;
    this.#showError();
  }

  async #run() {
    this.#showError();
    const source = this.#file.files[0] ?? this.#text.value;
    const job = { total: 0, sent: 0, indexed: 0, unchanged: 0, cut: 0, failed: [], collection: context.collection };
    this.#running = new AbortController();
    byId("add-stop").hidden = false;
    try {
      for await (const _ of readItems(textChunks(source))) {
        this.#running.signal.throwIfAborted();
        job.total += 1;
      }
      if (job.total === 0) return this.#showError("Nothing to add: choose a file, or paste documents.");
      this.#showProgress(job);
      for await (const batch of batches(readItems(textChunks(source)))) await this.#send(batch, job);
      this.#showEnd(job);
    } catch (error) {
      this.#showBreak(error, job);
    } finally {
      this.#running = null;
      if (document.activeElement === byId("add-stop")) this.#text.focus();
      byId("add-stop").hidden = true;
      this.#report.scrollIntoView({ block: "nearest" });
      loadCollections().catch(() => {}); // only its counts are stale then, and the health line says why
    }
  }

  /** Says at the field in use why nothing can be added; clears that without a message. */
  #showError(message = "") {
    const field = this.#file.files.length ? this.#file : this.#text;
    for (const each of [this.#file, this.#text]) setFieldError(each);
    if (!message) return;
    setFieldError(field, message);
    this.#report.replaceChildren();
    field.focus();
  }

  async #send(batch, job) {
    const query = new URLSearchParams({ collection: job.collection, truncate: byId("add-truncate").checked });
    const body = batch.map((item) => `${item.text}\n`).join("");
    const answer = await this.#patiently(() =>
      call("POST", `documents?${query}`, { body, type: "application/x-ndjson", signal: this.#running.signal }),
    );
    const at = (line) => batch[line - 1].line;
    job.sent += batch.length;
    job.indexed += answer.indexed;
    job.unchanged += answer.unchanged;
    job.cut += answer.truncated.length;
    for (const { id, line, code, detail } of answer.failed) {
      // the service counts lines within the batch, and names one in this message
      const reason =
        code === "duplicate_id" ? detail.replace(/\bline (\d+)/, (_, other) => `line ${at(other)}`) : detail;
      job.failed.push({ id, line: at(line), reason });
    }
    this.#showProgress(job);
  }

  /** Repeats what a busy or restarting service refused, when it says. */
  async #patiently(send) {
    for (let wait = 0; ; wait += 1) {
      try {
        return await send();
      } catch (error) {
        if (![429, 503].includes(error.status) || wait === MAX_WAITS) throw error;
        byId("add-note").textContent =
          `The service is busy (${error.title.toLowerCase()}); going on in ${count(error.retryAfter || 1, "second")}.`;
        await pause(error.retryAfter || 1, this.#running.signal);
        byId("add-note").textContent = "";
      }
    }
  }

  #showProgress(job) {
    if (job.sent === 0) {
      this.#report.replaceChildren(
        el(
          "div",
          { class: "card" },
          el("h2", {}, `Adding to ${job.collection}`),
          el("progress", { id: "add-progress", max: job.total, value: 0, "aria-label": "Documents sent" }),
          el("p", { id: "add-counts" }),
          el("p", { class: "hint", id: "add-note", role: "status" }),
        ),
      );
    }
    byId("add-progress").value = job.sent;
    byId("add-counts").textContent = `${grouped(job.sent)} of ${count(job.total, "document")}: ${describe(job)}`;
  }

  #showEnd(job) {
    const found = job.indexed + job.unchanged > 0;
    this.#report.replaceChildren(
      el(
        "div",
        { class: `card ${job.failed.length ? "partial" : "done"}`, role: "status" },
        el("h2", {}, job.failed.length ? `${count(job.failed.length, "document")} refused` : "Done"),
        el("p", {}, `${describe(job)} in ${job.collection}.`),
        job.unchanged > 0 &&
          el("p", { class: "hint" }, "Unchanged documents were there already, word for word; they cost no encoding."),
        found &&
          el(
            "div",
            { class: "actions" },
            el(
              "a",
              {
                class: "button",
                href: `?${new URLSearchParams({ collection: job.collection })}`,
                "data-view": "search",
              },
              `Search ${job.collection}`,
            ),
          ),
      ),
      failureTable(job.failed),
    );
  }

  #showBreak(error, job) {
    const confirmed =
      job.sent > 0
        ? `${describe(job)} so far. Documents that are in are skipped when sent again.`
        : "Nothing was added.";
    if (error.name === "AbortError") {
      const title = "Stopped";
      this.#report.replaceChildren(errorCard({ title, detail: confirmed, code: "" }), failureTable(job.failed));
    } else if (error.code) {
      const again = button("Try again", () => this.#run());
      this.#report.replaceChildren(errorCard(error, again), el("p", {}, confirmed), failureTable(job.failed));
    } else this.#showError(error.message);
  }
}

async function* batches(items) {
  let batch = [];
  let chars = 0;
  for await (const item of items) {
    if (batch.length === MAX_BATCH_ITEMS || (batch.length && chars + item.text.length > MAX_BATCH_CHARS)) {
      yield batch;
      [batch, chars] = [[], 0];
    }
    batch.push(item);
    chars += item.text.length;
  }
  if (batch.length) yield batch;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(signal.reason);
      },
      { once: true },
    );
  });
}

function describe({ indexed, unchanged, cut, failed }) {
  const parts = [`${grouped(indexed)} indexed`];
  if (cut) parts.push(`${grouped(cut)} of them cut`);
  if (unchanged) parts.push(`${grouped(unchanged)} unchanged`);
  if (failed.length) parts.push(`${grouped(failed.length)} refused`);
  return parts.join(", ");
}

function failureTable(failed) {
  if (failed.length === 0) return "";
  failed.sort((one, other) => one.line - other.line); // within a batch the service lists them as they fail
  const row = ({ line, id, reason }) =>
    el("tr", {}, el("td", {}, grouped(line)), el("td", {}, id ?? "—"), el("td", {}, reason));
  const more = failed.length - MAX_SHOWN_FAILURES;
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Refused documents" },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          ["Line", "Id", "Why"].map((name) => el("th", { scope: "col" }, name)),
        ),
      ),
      el("tbody", {}, failed.slice(0, MAX_SHOWN_FAILURES).map(row)),
    ),
    more > 0 && el("p", { class: "hint" }, `And ${grouped(more)} more.`),
  );
}
