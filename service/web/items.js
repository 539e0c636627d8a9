/**
 * Documents from pasted text or a file, each as one line of NDJSON with the line where it began.
 *
 * JSON is cut into its items as text, not parsed and printed again: numbers stay as they were written, and a broken
 * item is refused by the service, by its line, while the others go in.
 */

/** The text of a string or of a file (`.gz` is unpacked), in chunks. Throws an Error for what is no text. */
export async function* textChunks(source) {
  if (typeof source === "string") {
    yield source;
    return;
  }
  const isPacked = source.name.endsWith(".gz");
  const bytes = isPacked ? source.stream().pipeThrough(new DecompressionStream("gzip")) : source.stream();
  const reader = bytes.pipeThrough(new TextDecoderStream("utf-8", { fatal: true })).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    throw new Error(`${source.name} cannot be read as ${isPacked ? "gzip of UTF-8" : "UTF-8"} text.`, { cause: error });
  } finally {
    reader.cancel().catch(() => {}); // it has failed already, and was reported
  }
}

/** Items `{line, text}` of NDJSON, of a JSON array, of `{"documents": [...]}` or of one document. */
export async function* readItems(chunks) {
  const lines = numberedLines(chunks);
  const first = await lines.next();
  if (first.done) return;
  if (isWholeDocument(first.value.text)) {
    yield first.value;
    yield* lines;
    return;
  }
  const collected = [first.value];
  for await (const line of lines) collected.push(line);
  yield* jsonItems(collected) ?? collected;
}

/** Lines that are not blank, numbered from 1. */
async function* numberedLines(chunks) {
  let rest = "";
  let line = 0;
  for await (const chunk of chunks) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop();
    for (const text of parts) {
      line += 1;
      if (text.trim()) yield { line, text };
    }
  }
  if (rest.trim()) yield { line: line + 1, text: rest };
}

function isWholeDocument(text) {
  const value = parsed(text);
  return value !== undefined && !Array.isArray(value) && !Array.isArray(value?.documents);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The items of JSON that spans these lines; undefined if they are not that. */
function jsonItems(lines) {
  const text = lines.map((each) => each.text).join("\n");
  if (text.trimStart().startsWith("[")) return arrayItems(text, text.indexOf("["), lines);
  const value = parsed(text);
  if (value === undefined) return undefined;
  if (!Array.isArray(value.documents)) return [{ line: lines[0].line, text: oneLine(text) }];
  const start = text.match(/"documents"\s*:\s*\[/);
  return arrayItems(text, start.index + start[0].length - 1, lines);
}

/** Line ends in JSON stand between its tokens only. */
const oneLine = (text) => text.replace(/[\r\n]+/g, " ").trim();

/** The items of the array that opens at `open`, without a look at what is inside them. */
function* arrayItems(text, open, lines) {
  let depth = 0;
  let isInString = false;
  let start = open + 1;
  let numLineEnds = countLineEnds(text, 0, start);
  const item = (end) => {
    const raw = text.slice(start, end);
    const found = { line: lines[numLineEnds + countLineEnds(raw, 0, raw.search(/\S|$/))].line, text: oneLine(raw) };
    numLineEnds += countLineEnds(raw, 0, raw.length);
    return found;
  };
  for (let index = start; index < text.length; index += 1) {
    const character = text[index];
    if (isInString) {
      if (character === "\\") index += 1;
      else if (character === '"') isInString = false;
    } else if (character === '"') isInString = true;
    else if (character === "[" || character === "{") depth += 1;
    else if (depth > 0) depth -= character === "]" || character === "}" ? 1 : 0;
    else if (character === "," || character === "]") {
      const found = item(index);
      if (found.text) yield found;
      if (character === "]") return;
      start = index + 1;
    }
  }
  const last = item(text.length);
  if (last.text) yield last;
}

function countLineEnds(text, from, to) {
  let total = 0;
  for (let index = from; index < to; index += 1) if (text[index] === "\n") total += 1;
  return total;
}
