// What kind of text a model wrote where: thinking, code, a tool call, an answer, words.
const MARKS = [
  {kind: "thinking", open: /<think(?:ing)?>/g, close: /<\/think(?:ing)?>/g},
  {kind: "code", language: "python", open: /<code>\s*(?:```(?:python|py)?\n)?/g, close: /(?:\n?```\s*)?<\/code>/g},
  {kind: "call", language: "json", open: /<tool_call>/g, close: /<\/tool_call>/g},
  {kind: "code", language: "python", open: /```(?:python|py|tool_code)?[^\S\n]*\n/g, close: /\n?```/g},
  {kind: "answer", open: /<answer>/g, close: /<\/answer>/g},
];

// [{kind, text, language?, before?, after?}]: joined, before + text + after give the whole text.
export function segments(text) {
  const found = [];
  let at = 0;
  while (at < text.length) {
    const next = first(text, at);
    if (!next) break;
    if (next.index > at) found.push({kind: "words", text: text.slice(at, next.index)});
    const {mark, start} = next;
    mark.close.lastIndex = start;
    const close = mark.close.exec(text);
    const end = close ? close.index : text.length;
    at = close ? close.index + close[0].length : text.length;
    found.push({
      kind: mark.kind, language: mark.language, text: text.slice(start, end),
      before: text.slice(next.index, start), after: text.slice(end, at), open: !close,
    });
  }
  if (at < text.length) found.push({kind: "words", text: text.slice(at)});
  return found;
}

function first(text, at) {
  let best = null;
  for (const mark of MARKS) {
    mark.open.lastIndex = at;
    const match = mark.open.exec(text);
    if (match && (!best || match.index < best.index)) {
      best = {mark, index: match.index, start: match.index + match[0].length};
    }
  }
  return best;
}
