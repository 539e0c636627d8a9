/** Calls of the service. Paths are relative, so that the page works behind a proxy's prefix as well. */

const KEY = "eoseek-key";
let key = stored();

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // a browser that keeps nothing for this page
  }
}

export const getKey = () => key;

export function setKey(value) {
  key = value.trim();
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // kept in memory, then
  }
}

/** A refusal, as the service's problem document has it, or no answer at all (status 0). */
export class ServiceError extends Error {
  constructor(status, problem, retryAfter = 0) {
    super(problem.detail);
    this.status = status;
    this.retryAfter = retryAfter; // seconds; 0 where the service names none
    Object.assign(this, { errors: [], instance: "", ...problem });
    this.errors ??= [];
  }
}

const UNREACHABLE = {
  code: "unreachable",
  title: "The service does not answer",
  detail:
    "It may have stopped or still be starting. Start it with `eoseek serve` and try again; your input stays here.",
};

/**
 * The parsed answer; null for an empty one.
 * Throws ServiceError, or the AbortError of `signal`.
 */
export async function call(method, path, { body, type = "application/json", signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = type;
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    const response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
    const text = await response.text();
    if (!response.ok) throw refusal(response, text);
    return text ? JSON.parse(text) : null;
  } catch (error) {
    if (error instanceof ServiceError || error.name === "AbortError") throw error;
    if (error instanceof SyntaxError) throw strange(path);
    throw new ServiceError(0, UNREACHABLE);
  }
}

function refusal(response, text) {
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  try {
    const problem = JSON.parse(text);
    if (typeof problem.detail === "string") return new ServiceError(response.status, problem, retryAfter);
  } catch {
    // a proxy's page, most likely
  }
  const title = `${response.status} ${response.statusText}`.trim();
  const detail = "The answer is not the service's own: a proxy in between may have given it.";
  return new ServiceError(response.status, { code: "not_eoseek", title, detail }, retryAfter);
}

function strange(path) {
  const detail = `${path} answered something else than JSON: a proxy in between may have given it.`;
  return new ServiceError(0, { code: "not_eoseek", title: "An answer that cannot be read", detail });
}

export const documentPath = (id, collection) =>
  `documents/${encodeURIComponent(id)}?${new URLSearchParams({ collection })}`;

export const collectionPath = (name) => `collections/${encodeURIComponent(name)}`;
