/** One search as a command or as a program, to be pasted elsewhere. */

/** The request's body as text. The filter goes in as written: parsed and printed again, large integers would change. */
export function searchBody({ query, instruction, topK, collection, filter }) {
  const fields = [["query", query], ["instruction", instruction], ["top_k", topK], ["collection", collection]]
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`);
  if (filter) fields.push(`"filter": ${filter.trim()}`);
  return `{${fields.join(", ")}}`;
}

export function asCurl(search, { base, hasKey }) {
  const lines = [`curl -s ${shellQuote(`${base}search`)}`, "-H 'Content-Type: application/json'"];
  if (hasKey) lines.push('-H "Authorization: Bearer $EOSEEK_KEY"');
  return [...lines, `-d ${shellQuote(searchBody(search))}`].join(" \\\n  ");
}

export function asPython({ query, instruction, topK, collection, filter }, { base }) {
  const options = [["collection", collection], ["instruction", instruction], ["top_k", topK]]
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  if (filter) options.push(`filter=json.loads(${pythonText(filter.trim())})`);
  const call = ["", JSON.stringify(query), ...options].join(",\n        ").slice(1);
  return [
    ...(filter ? ["import json", ""] : []),
    "from eoseek.client import Client",
    "",
    `with Client(${JSON.stringify(base.replace(/\/$/, ""))}) as client:`,
    `    hits = client.search(${call},\n    )`,
    "    for hit in hits:",
    '        print(f"{hit.score:.3f}", hit.id, hit.title)',
  ].join("\n");
}

const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** JSON's string literals are Python's too. */
const pythonText = (text) => JSON.stringify(text);
