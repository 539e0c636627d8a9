/** One search as a command or as a program, to be pasted elsewhere. */

/** The request's body as text. The filter goes in as written: parsed and printed again, large integers would change. */
export function searchBody({ query, instruction, topK, collection, filter, truncate }) {
  const fields = [
    ["query", query],
    ["instruction", instruction],
    ["top_k", topK],
    ["collection", collection],
    ["truncate", truncate],
  ]
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`);
  if (filter) fields.push(`"filter": ${filter}`);
  return `{${fields.join(", ")}}`;
}

export function asCurl(search, { base, hasKey }) {
  const lines = [`curl -s ${shellQuote(`${base}search`)}`, "-H 'Content-Type: application/json'"];
  if (hasKey) lines.push('-H "Authorization: Bearer $EOSEEK_API_KEY"');
  return [...lines, `-d ${shellQuote(searchBody(search))}`].join(" \\\n  ");
}

/** JSON's literals of texts and numbers are Python's too. */
export function asPython({ query, instruction, topK, collection, filter, truncate }, { base, hasKey }) {
  const options = [
    ["collection", collection],
    ["instruction", instruction],
    ["top_k", topK],
  ]
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  if (truncate) options.push("truncate=True");
  if (filter) options.push(`filter=json.loads(${JSON.stringify(filter)})`);
  const service = [JSON.stringify(base.replace(/\/$/, "")), hasKey && 'api_key=os.environ["EOSEEK_API_KEY"]'];
  const modules = [filter && "import json", hasKey && "import os"].filter(Boolean);
  const call = [JSON.stringify(query), ...options].map((each) => `        ${each},`);
  return [
    ...modules,
    ...(modules.length ? [""] : []),
    "from eoseek.client import Client",
    "",
    `with Client(${service.filter(Boolean).join(", ")}) as client:`,
    "    hits = client.search(",
    ...call,
    "    )",
    "    for hit in hits:",
    '        print(f"{hit.score:.3f}", hit.id, hit.title)',
  ].join("\n");
}

const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
