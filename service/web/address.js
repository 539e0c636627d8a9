/** What the page shows, as the query string of its address: a search can be bookmarked, shared and gone back to. */

const NAMES = ["view", "q", "instruction", "compare", "collection", "top_k", "filter", "document"];

/** The named parts of the address; absent ones are left out, an empty `instruction` is one. */
export function readAddress() {
  const params = new URLSearchParams(location.search);
  return Object.fromEntries(NAMES.filter((name) => params.has(name)).map((name) => [name, params.get(name)]));
}

/** Puts `parts` in the address; undefined ones are left out. A step back leads to the former one, unless replaced. */
export function writeAddress(parts, { replace = false } = {}) {
  const query = String(
    new URLSearchParams(NAMES.filter((name) => parts[name] !== undefined).map((name) => [name, parts[name]])),
  );
  const address = query ? `?${query}` : location.pathname;
  if (replace) history.replaceState(null, "", address);
  else if (`?${query}` !== (location.search || "?")) history.pushState(null, "", address);
}
