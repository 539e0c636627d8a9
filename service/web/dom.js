/** Building the page. Strings become text nodes here and nowhere anything else, so no document's text is ever HTML. */

export const byId = (id) => document.getElementById(id);

/** An element with attributes, listeners (`onclick: function`) and children; null and false are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

/** Shows `message` at a field and marks it, or clears both where there is none. */
export function setFieldError(field, message = "") {
  const place = byId(`${field.id}-error`) ?? byId(field.getAttribute("aria-describedby").split(" ").pop());
  place.textContent = message;
  place.hidden = !message;
  if (message) field.setAttribute("aria-invalid", "true");
  else field.removeAttribute("aria-invalid");
}

/** Opens a dialog with this content; its close button is the last child of the heading row. */
export function openDialog(dialog, title, ...content) {
  const close = el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close");
  const heading = el("h2", { id: dialog.getAttribute("aria-labelledby") }, title);
  dialog.replaceChildren(el("div", { class: "dialog-head" }, heading, close), ...content.filter(Boolean));
  if (!dialog.open) dialog.showModal();
}

/** A failure as a card: what happened, what to do, and buttons that do it. */
export function errorCard(error, ...actions) {
  const wait = error.retryAfter && `wait ${count(error.retryAfter, "second")}`;
  const details = [error.code, error.instance && `request ${error.instance}`, wait].filter(Boolean).join(" · ");
  return el(
    "div",
    { class: "card error", role: "alert" },
    el("h2", {}, error.title),
    el("p", {}, error.detail),
    details && el("p", { class: "hint" }, details),
    actions.length > 0 && el("div", { class: "actions" }, actions),
  );
}

export const button = (label, onclick, attributes = {}) =>
  el("button", { type: "button", onclick, ...attributes }, label);

const number = new Intl.NumberFormat("en");

export const count = (value, noun) => `${number.format(value)} ${noun}${value === 1 ? "" : "s"}`;

export const grouped = (value) => number.format(value);

/** Milliseconds with about three digits. */
export function milliseconds(value) {
  return `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : number.format(Math.round(value))} ms`;
}
