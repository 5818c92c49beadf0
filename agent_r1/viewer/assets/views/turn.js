// One turn: what the model wrote and what the environment answered.
import {html, useEffect, useMemo, useRef, useState} from "../lib/core.js";
import {useData} from "../lib/api.js";
import {coloured} from "../lib/code.js";
import {duration, number, plural} from "../lib/format.js";
import {segments} from "../lib/segments.js";
import {Text, named} from "../lib/text.js";
import {MEASURES, greatest, shade} from "./measures.js";

// `place` is {run, key}: whose turn it is. Tokens are asked for when the turn comes into sight.
export function Turn({turn, place, data, number: index, tokens, measure, reward}) {
  const [node, inSight] = useInSight();
  const [end, setEnd] = useState(FIRST_TOKENS);
  const found = useTokens(tokens && inSight ? {...place, turn: index, end} : null);
  const worked = turn.calls.every(call => call.success);
  const observed = found?.observed ?? turn.observation.replace(/^\n+/, "");
  return html`
    ${turn.begins && index > 0 && html`<p class="edited">The environment edited the context here: a new training sample begins
      ${turn.context_length ? ` with ${plural(turn.context_length, "token")}` : ""}.</p>
      ${found?.context && html`<section class="said prompt"><h2 class="label">context</h2><${Text} text=${found.context} class="text masked" most=${4000} /></section>`}`}
    <section class="said model" ref=${node}><h2 class="label">turn ${index + 1}, the model <span>${plural(turn.length, "token")}</span><span>${ended(turn)}</span>
      <span>policy version ${versions(turn)}</span><span>${duration(turn.generate_seconds)}</span>${reward !== null && reward !== undefined && html`<span>reward ${number(reward)}</span>`}</h2>
      ${found?.tokens ? html`<${Tokens} tokens=${found.tokens} total=${found.total} data=${data} measure=${measure} onMore=${() => setEnd(end + MORE_TOKENS)} />` : html`<${Written} text=${turn.text} />`}</section>
    ${(observed || turn.calls.length > 0) && html`<section class=${"said tool" + (turn.calls.length ? worked ? " good" : " bad" : "")}>
      <h2 class="label">the environment <span>${tokens ? `${plural(turn.observed_length, "token")}, masked` : plural(turn.observed_length, "token")}</span>
        ${turn.calls.map(call => html`<span class=${call.success ? "" : "cut"}>call ${call.success ? "worked" : "failed"} in ${duration(call.seconds)}</span>`)}</h2>
      <${Text} text=${observed} most=${8000} class=${tokens ? "text masked" : "text"} /></section>`}`;
}

const FIRST_TOKENS = 4000, MORE_TOKENS = 16000;

// What the server tells of the tokens of a turn; `asked` null asks nothing.
export function useTokens(asked) {
  const {data} = useData(asked ? "tokens" : "", asked || {});
  return asked ? data : null;
}

// Whether an element is, or ever was, close to what the window shows.
function useInSight() {
  const node = useRef(null);
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    const watcher = new IntersectionObserver(entries => entries.some(each => each.isIntersecting) && setSeen(true), {rootMargin: "600px"});
    watcher.observe(node.current);
    return () => watcher.disconnect();
  }, []);
  return [node, seen];
}

const ended = turn => turn.finish === "stop" ? `stopped at ${turn.stop}` : turn.finish === "eos" ? "ended" : "cut by its length";

function versions(turn) {
  const [[, first], ...later] = turn.versions;
  return [first, ...later.map(([at, version]) => `${version} from token ${at}`)].join(", ");
}

// Thinking is folded, code has colours, words are words.
function Written({text}) {
  const parts = useMemo(() => segments(text), [text]);
  return html`<div class="written">${parts.map(part => html`<${Part} part=${part} />`)}</div>`;
}

function Part({part}) {
  if (part.kind === "words") return html`<${Text} text=${part.text} />`;
  const mark = text => html`<span class="mark"><bdi>${named(text)}</bdi></span>`;
  if (part.kind === "thinking") {
    return html`<details class="thinking"><summary>Thinking <small>${plural(part.text.length, "character")}${part.open ? ", not closed" : ""}</small></summary><${Text} text=${part.text} /></details>`;
  }
  if (part.kind === "answer") return html`<div class="answer">${mark(part.before)}<${Text} text=${part.text} />${mark(part.after)}</div>`;
  return html`<div class="code" tabindex="0" role="group" aria-label=${part.kind === "call" ? "tool call" : "code"}>${mark(part.before.trimEnd())}<${Text} text=${part.text} draw=${shown => coloured(shown, part.language)} />${mark(part.after.trimStart())}</div>`;
}

function Tokens({tokens, total, data, measure, onMore}) {
  const drawn = useMemo(() => {
    const edge = greatest(measure, data);
    let at = 0;
    return tokens.pieces.map(([text, count]) => {
      const made = html`<span class=${shade(measure, tokens, at, edge)} title=${told(tokens, at)}>${named(text)}</span>`;
      at += count;
      return made;
    });
  }, [tokens, measure]);
  const hidden = total - tokens.versions.length;
  return html`<div class="text tokens" dir="auto"><bdi>${drawn}</bdi>${hidden > 0 && html`<button class="more" onClick=${onMore}>show more of ${number(hidden)} further tokens</button>`}</div>`;
}

function told(tokens, i) {
  const lines = [`token ${i}`];
  for (const {title, needs, value} of Object.values(MEASURES)) {
    if (needs.every(need => tokens[need])) lines.push(`${title}: ${number(value(tokens, i))}`);
  }
  if (tokens.logprobs) lines.push(`log-probability: ${number(tokens.logprobs[i])}`);
  return lines.join("\n");
}
