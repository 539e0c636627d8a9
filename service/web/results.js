/** Results as lists: one, or two side by side with each document's move from the first to the second. */

import { button, count, el, milliseconds } from "./dom.js";

const STAGES = {
  tokenize: "Tokenize",
  queue: "Wait in the queue",
  encode: "Encode",
  search: "Search the store",
  rest: "Rest of the service",
};
const MAX_CHIPS = 6;
const MAX_CHIP_CHARS = 60;
const MAX_TEXT_CHARS = 600; // of the excerpt; three lines show of it

/** Where each document stands in both lists: ranks from 1, null for absent. A map by id. */
export function rankMoves(first, second) {
  const moves = new Map(first.map((hit, index) => [hit.id, { from: index + 1, to: null }]));
  second.forEach((hit, index) => moves.set(hit.id, { from: moves.get(hit.id)?.from ?? null, to: index + 1 }));
  return moves;
}

/** One list. `badge(hit)` gives what stands beside the rank; `onmatch` makes metadata a filter. */
export function resultList(hits, { onopen, onmatch, badge }) {
  return el(
    "ol",
    { class: onmatch ? "results" : "results compact" },
    hits.map((hit, index) => {
      const open = button(hit.title || hit.id, () => onopen(hit), { class: "title" });
      return el(
        "li",
        { "data-id": hit.id },
        el(
          "div",
          { class: "rank" },
          el("span", {}, el("span", { class: "unseen" }, "Rank "), String(index + 1)),
          badge?.(hit),
        ),
        el(
          "div",
          { class: "hit" },
          el("div", { class: "hit-head" }, el("h3", {}, open), score(hit.score)),
          hit.title &&
            !(onmatch ? hit.title === hit.id : hit.title.includes(hit.id)) &&
            el("p", { class: "id" }, hit.id),
          el("p", { class: "excerpt" }, hit.text.slice(0, MAX_TEXT_CHARS)),
          onmatch && chips(hit.metadata, onmatch),
        ),
      );
    }),
  );
}

function score(value) {
  const bar = el("span", { class: "score-bar", "aria-hidden": "true" }, el("span"));
  bar.firstChild.style.width = `${100 * Math.min(1, Math.max(0, value))}%`;
  return el(
    "div",
    { class: "score" },
    bar,
    el("span", {}, el("span", { class: "unseen" }, "Score "), value.toFixed(3)),
  );
}

function chips(metadata, onmatch) {
  const simple = Object.entries(metadata).filter(
    ([, value]) => typeof value === "string" || typeof value === "boolean" || Number.isSafeInteger(value),
  );
  if (simple.length === 0) return null;
  return el(
    "ul",
    { class: "chips", "aria-label": "Metadata" },
    simple.slice(0, MAX_CHIPS).map(([key, value]) => {
      const text = `${key}: ${String(value).slice(0, MAX_CHIP_CHARS)}`;
      return el(
        "li",
        {},
        button(text, () => onmatch(key, value), { "aria-label": `Filter by ${text}` }),
      );
    }),
  );
}

/** Two lists side by side; lines between them join what both found. */
export function comparison([first, second], { labels, onopen }) {
  const moves = rankMoves(first.results, second.results);
  const columns = [first, second].map((answer, side) => {
    const badge = (hit) => moveBadge(moves.get(hit.id), side, labels);
    return el(
      "section",
      { class: "column", "aria-labelledby": `column-${side}` },
      el(
        "div",
        { class: "column-head" },
        el("h2", { id: `column-${side}` }, el("span", { class: "letter" }, "AB"[side]), labels[side].label),
        el("p", { class: "hint" }, labels[side].sentence ? `“${labels[side].sentence}”` : "the query as it is"),
      ),
      resultList(answer.results, { onopen, badge }),
    );
  });
  const lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  lines.setAttribute("aria-hidden", "true");
  const root = el("div", { class: "comparison" }, columns[0], lines, columns[1]);
  const redraw = () => drawLines(lines, columns, moves);
  new ResizeObserver(redraw).observe(root);
  for (const event of ["pointerover", "focusin"]) root.addEventListener(event, ({ target }) => highlight(root, target));
  root.addEventListener("pointerleave", () => highlight(root, null));
  return root;
}

function moveBadge({ from, to }, side, labels) {
  if (side === 0)
    return to === null && el("span", { class: "move out", title: `Not found with ${labels[1].label}` }, "only A");
  if (from === null) return el("span", { class: "move new", title: `Not found with ${labels[0].label}` }, "only B");
  if (from === to)
    return el("span", { class: "move same" }, el("span", { "aria-hidden": "true" }, "="), unseen("same rank in both"));
  const [kind, arrow] = from > to ? ["up", "▲"] : ["down", "▼"];
  const steps = Math.abs(from - to);
  return el(
    "span",
    { class: `move ${kind}` },
    el("span", { "aria-hidden": "true" }, `${arrow} ${steps}`),
    unseen(`${kind} ${steps}, from rank ${from}`),
  );
}

const unseen = (text) => el("span", { class: "unseen" }, text);

/** In a sentence, what a second list changes. */
export function describeMoves(first, second) {
  const moves = rankMoves(first, second);
  const shared = [...moves].filter(([, { from, to }]) => from && to);
  const movers = shared.filter(([, { from, to }]) => from !== to);
  const parts = [
    `${shared.length} of ${second.length} found by both`,
    movers.length ? `${count(movers.length, "document")} moved` : "none of them moved",
  ];
  const [id, largest] = movers.reduce(
    (best, each) => (span(each[1]) > span(best[1]) ? each : best),
    ["", { from: 0, to: 0 }],
  );
  if (id) parts.push(`the farthest: ${id}, from ${largest.from} to ${largest.to}`);
  return `${parts.join("; ")}.`;
}

const span = ({ from, to }) => Math.abs(from - to);

function drawLines(lines, columns, moves) {
  const { top, width, height } = lines.getBoundingClientRect();
  lines.replaceChildren();
  if (width === 0) return; // hidden where the lists stand one below the other
  lines.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const middle = (side, rank) => {
    const { top: itemTop } = columns[side].querySelectorAll("li")[rank - 1].getBoundingClientRect();
    return itemTop - top + 24; // at the height of the title
  };
  for (const [id, { from, to }] of moves) {
    if (!from || !to) continue;
    const [start, end] = [middle(0, from), middle(1, to)];
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M0 ${start} C${width / 2} ${start} ${width / 2} ${end} ${width} ${end}`);
    path.setAttribute("class", from === to ? "same" : from > to ? "up" : "down");
    path.dataset.id = id;
    lines.append(path);
  }
}

function highlight(root, target) {
  const id = target?.closest?.("[data-id]")?.dataset.id;
  for (const node of root.querySelectorAll("[data-id]"))
    node.classList.toggle("marked", id !== undefined && node.dataset.id === id);
}

/** Where an answer's time went, as a bar and in figures. */
export function timings(tookMs, roundTripMs, heading = "Time") {
  const { total, ...stages } = tookMs;
  const parts = { ...stages, rest: Math.max(0, total - Object.values(stages).reduce((sum, each) => sum + each, 0)) };
  const bar = el(
    "div",
    { class: "stages", "aria-hidden": "true" },
    Object.entries(parts).map(([stage, value]) => {
      const segment = el("span", { class: `stage ${stage}` });
      segment.style.flexGrow = value;
      return segment;
    }),
  );
  const rows = Object.entries(parts).map(([stage, value]) => [
    el("span", { class: `swatch ${stage}` }),
    STAGES[stage] ?? stage,
    value,
  ]);
  const row = ([swatch, name, value]) => el("div", {}, el("dt", {}, swatch, name), el("dd", {}, milliseconds(value)));
  return el(
    "section",
    { class: "timings" },
    el("h2", {}, heading),
    bar,
    el(
      "dl",
      {},
      rows.map(row),
      el("div", { class: "total" }, el("dt", {}, "In the service"), el("dd", {}, milliseconds(total))),
      el("div", {}, el("dt", {}, "Seen from here"), el("dd", {}, milliseconds(roundTripMs))),
    ),
  );
}
