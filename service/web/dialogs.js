/** What opens on top of the results: one document, and the search as code. */

import { readAddress, writeAddress } from "./address.js";
import { getKey } from "./api.js";
import { button, byId, el, openDialog } from "./dom.js";
import { asCurl, asPython } from "./snippets.js";

/** A stored document, whole. */
export function showDocument({ id, title, text, metadata }) {
  const hasMetadata = Object.keys(metadata).length > 0;
  openDialog(
    byId("document-dialog"),
    title || id,
    el("p", { class: "id" }, id),
    el("div", { class: "text", tabindex: "0", role: "region", "aria-label": "Text" }, text),
    hasMetadata && el("h3", {}, "Metadata"),
    hasMetadata && el("pre", { tabindex: "0" }, JSON.stringify(metadata, null, 2)),
  );
}

byId("document-dialog").addEventListener("close", () => {
  const { document: _, ...others } = readAddress();
  writeAddress(others, { replace: true });
});

/** A search as commands to copy. */
export function showCode(title, search) {
  const base = new URL(".", location.href).href;
  const service = { base, hasKey: Boolean(getKey()) };
  const snippets = { curl: asCurl(search, service), Python: asPython(search, service) };
  const blocks = Object.entries(snippets).map(([name, code]) => {
    const shown = el("pre", { tabindex: "0", "aria-label": name }, code);
    const copy = button(`Copy ${name}`, () => copyCode(shown, copy));
    return el("section", {}, el("div", { class: "label-row" }, el("h3", {}, name), copy), shown);
  });
  openDialog(byId("code-dialog"), title, ...blocks);
}

async function copyCode(shown, copy) {
  try {
    await navigator.clipboard.writeText(shown.textContent);
    copy.textContent = "Copied";
  } catch {
    // no clipboard without https beyond this machine: select it, so that one keystroke copies
    getSelection().selectAllChildren(shown);
    copy.textContent = "Selected: press Ctrl+C";
  }
}
