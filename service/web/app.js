/** The page as a whole: which view shows, what runs, and whether the service is there. */

import { AddView } from "./add.js";
import { readAddress, writeAddress } from "./address.js";
import { call, getKey, setKey } from "./api.js";
import { CollectionsView } from "./collections.js";
import { chooseCollection, context, loadCollections, loadInfo } from "./context.js";
import { button, byId, el, errorCard, grouped } from "./dom.js";
import { SearchView } from "./search.js";

const HEALTH_EVERY_MS = 15_000;
const HEALTH_EVERY_MS_WHEN_AWAY = 3_000;
const TITLES = { search: "Search", add: "Add documents", collections: "Collections" };

const search = new SearchView();
const add = new AddView();
const collections = new CollectionsView();
let isLoaded = false;
let isRefused = false; // for want of a key, so that asking again without one is no use

async function load() {
  try {
    await loadInfo();
    context.collection ||= readAddress().collection ?? "";
    await loadCollections();
    isRefused = false;
  } catch (error) {
    isRefused = error.status === 401;
    showNotice(errorCard(error, isRefused ? "" : button("Try again", load)));
    if (isRefused) byId("settings").open = true;
    return;
  }
  isLoaded = true;
  showNotice(
    context.info.is_tuned === false
      ? el(
          "p",
          { class: "notice" },
          `${context.info.model} is a bare language model, not tuned for retrieval: expect poor results.`,
        )
      : null,
  );
  showAbout(context.info);
  search.offer(context.info);
  add.offer(context.info);
  restore();
}

const showNotice = (node) => byId("notices").replaceChildren(node ?? "");

function showAbout({ version, model, dimension, max_length: maxLength, backend, dtype, store }) {
  const parts = [
    `EOSeek ${version}`,
    model,
    `${grouped(dimension)} dimensions`,
    `${grouped(maxLength)} tokens at most`,
    `${backend}, ${dtype}`,
    `store ${store}`,
  ];
  byId("about").textContent = parts.join(" · ");
}

/** Shows what the address says. */
function restore() {
  const address = readAddress();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  if (address.collection !== undefined && address.collection !== context.collection)
    chooseCollection(address.collection);
  const view = showView(address.view);
  if (view === "search") {
    search.restore(address);
    if (!address.q) search.focus();
  }
  if (view === "collections") collections.refresh();
}

function showView(asked) {
  const view = Object.hasOwn(TITLES, asked ?? "") ? asked : "search";
  for (const section of document.querySelectorAll("section.view")) section.hidden = section.dataset.view !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${TITLES[view]} · EOSeek`;
  return view;
}

/** Links between views stay on the page, unless they are to open elsewhere; what the search form holds is kept. */
function follow(event) {
  const link = event.target.closest("a[data-view]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const chosen = new URL(link.href).searchParams.get("collection");
  if (chosen) chooseCollection(chosen);
  const view = showView(link.dataset.view);
  writeAddress(view === "search" ? search.address() : { view, collection: context.collection || undefined });
  if (view === "search" && chosen) search.again();
  if (view === "search") search.focus();
  else byId("main").focus();
  if (view === "collections" && isLoaded) collections.refresh();
}

async function watchHealth() {
  let isReady = true;
  try {
    await call("GET", "health/ready");
    showHealth("ready", "Ready");
    if (!isLoaded && !isRefused) await load();
    isReady = isLoaded || isRefused;
  } catch (error) {
    isReady = false;
    const away = Object.entries(error.parts ?? {})
      .filter(([, isThere]) => !isThere)
      .map(([part]) => part);
    showHealth(
      error.status ? "away" : "offline",
      error.status === 503 ? `Not ready${away.length ? `: ${away.join(", ")}` : ""}` : "No answer",
    );
  }
  setTimeout(
    () =>
      document.hidden ? document.addEventListener("visibilitychange", watchHealth, { once: true }) : watchHealth(),
    isReady ? HEALTH_EVERY_MS : HEALTH_EVERY_MS_WHEN_AWAY,
  );
}

function showHealth(state, text) {
  const health = byId("health");
  if (health.dataset.state === state && health.textContent === text) return; // said once, not at each look
  health.dataset.state = state;
  health.textContent = text;
}

document.addEventListener("click", follow);
addEventListener("popstate", restore);
byId("key").value = getKey();
byId("settings-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  load();
});
showView(readAddress().view);
load().then(watchHealth);
