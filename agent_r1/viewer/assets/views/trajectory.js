// One trajectory, whole.
import {html, useEffect, useState} from "../lib/core.js";
import {get, getText, useData} from "../lib/api.js";
import {duration, number, plural} from "../lib/format.js";
import {useKeys} from "../lib/keys.js";
import {Empty, Facts, Problem, Reward} from "../lib/parts.js";
import {go, link} from "../lib/route.js";
import {useStored} from "../lib/store.js";
import {Line, Text, named} from "../lib/text.js";
import {Legend, MEASURES, available} from "./measures.js";
import {Siblings} from "./siblings.js";
import {Timeline} from "./timeline.js";
import {Turn, useTokens} from "./turn.js";

const COPIES = [["markdown", "Markdown"], ["trace", "a trace to learn from"], ["test", "a test"]];

export function Trajectory({route, run}) {
  const {key} = route.query;
  const {data, error, fresh} = useData(key === undefined ? "" : "trajectory", {run: run.key, key});
  const [mode, setMode] = useStored("trajectory-mode", "text");
  const [measure, setMeasure] = useStored("trajectory-measure", "probability");
  const around = useAround(run, route.query);
  const show = other => other !== undefined && go(["run", run.key, "trajectory"], {...route.query, key: other});
  const sibling = by => {
    const at = data ? data.siblings.findIndex(each => each.key === key) : -1;
    show(data?.siblings[at + by]?.key);
  };
  const tokens = mode === "tokens" && data?.spelled;
  useKeys({
    j: ["next trajectory found", () => show(around.next)], k: ["trajectory before", () => show(around.before)],
    "]": ["next sibling", () => sibling(1)], "[": ["sibling before", () => sibling(-1)],
    t: ["text or tokens", () => setMode(mode === "text" ? "tokens" : "text")],
    m: ["next measure of the tokens", () => setMeasure(following(measure, data))],
    c: ["copy as Markdown", () => copy(run, key, "markdown").catch(() => {})],
    u: ["back to what was found", () => go(["run", run.key, "find"], found(route.query))],
  });
  if (key === undefined) return html`<${Empty}>Choose a trajectory under Step or Find.<//>`;
  if (!data) return html`<${Problem} error=${error} />`;
  return html`<article class=${"trajectory" + (fresh ? "" : " old")}><header class="tools head">
      <h1><a href=${link(["run", run.key, "step"], {step: data.step, split: data.split})}>Step ${data.step}</a> · <${Line} text=${data.task.id} /> · ${data.sibling}</h1>
      <${Reward} value=${data.reward?.value} /><span class=${data.outcome === "finished" ? "" : "cut"}>${data.outcome}</span>
      <span class="grow"></span>
      <a href=${link(["run", run.key, "find"], found(route.query))}>All found</a>
      <button disabled=${around.before === undefined} onClick=${() => show(around.before)} aria-label="trajectory before">‹</button>
      <button disabled=${around.next === undefined} onClick=${() => show(around.next)} aria-label="next trajectory">›</button>
    </header>
    <${Problem} error=${error || data.error} />
    <${RewardParts} data=${data} />
    <${Siblings} data=${data} run=${run} current=${key} query=${route.query} />
    <${Timeline} turns=${data.turns} seconds=${data.seconds} />
    <div class="tools sticky">
      <div class="switch" role="group" aria-label="Show">${[["text", "Text"], ["tokens", "Tokens"]].map(([name, title]) => html`<button
        aria-pressed=${(tokens ? "tokens" : "text") === name} disabled=${name === "tokens" && !data.spelled} onClick=${() => setMode(name)}>${title}</button>`)}</div>
      ${tokens && html`<label>Colour <select value=${measure} onChange=${e => setMeasure(e.target.value)}>${Object.entries(MEASURES).map(([name, {title}]) =>
        html`<option value=${name} disabled=${!available(name, data)}>${title}${available(name, data) ? "" : " (not recorded)"}</option>`)}</select></label><${Legend} measure=${measure} data=${data} />`}
      ${mode === "tokens" && !data.spelled && html`<span class="note">No tokenizer of this run was found; start with --tokenizer MODEL.</span>`}
      <span class="grow"></span><${Copies} run=${run} trajectory=${key} />
    </div>
    <${Prompt} key=${data.key} data=${data} asked=${tokens ? {run: run.key, key: data.key, turn: 0, end: 1} : null} />
    ${data.turns.map((turn, i) => html`<${Turn} key=${data.key + "." + i} turn=${turn} place=${{run: run.key, key: data.key}} data=${data} number=${i} tokens=${tokens} measure=${measure} reward=${data.reward?.per_turn?.[i] ?? turn.reward} />`)}
  </article>`;
}

const found = ({in: search}) => Object.fromEntries(new URLSearchParams(search || ""));

function following(measure, data) {
  const names = Object.keys(MEASURES).filter(name => !data || available(name, data));
  return names[(names.indexOf(measure) + 1) % names.length];
}

// The trajectories before and after this one in the search it was found by, or in the run.
function useAround(run, query) {
  const [around, setAround] = useState({});
  const {key, in: search} = query;
  useEffect(() => {
    if (key === undefined) return undefined;
    let current = true;
    get("around", {run: run.key, key, ...found(query)}).then(
      data => current && setAround({before: data.before ?? undefined, next: data.next ?? undefined}),
      () => current && setAround({}),
    );
    return () => { current = false; };
  }, [run.key, key, search]);
  return around;
}

const said = text => html`<bdi>${named(text.slice(0, 400))}</bdi>`;

function RewardParts({data}) {
  const parts = Object.entries(data.reward?.parts || {}).map(([name, value]) => [name, number(value)]);
  const extra = Object.entries(data.task.extra).filter(([, value]) => value.length < 200);
  return html`<${Facts} facts=${[
    ...parts, ["right answer", data.task.answer && said(data.task.answer)], ["source", said(data.task.source)],
    ["seconds", duration(data.seconds)], ["turns", data.turns.length], ["model's tokens", number(data.turns.reduce((sum, turn) => sum + turn.length, 0))],
    ["state", data.state && said(data.state)], ...extra.map(([name, value]) => [name, said(value)]),
  ]} />`;
}

function Prompt({data, asked}) {
  const context = useTokens(asked && data.turns.length ? asked : null)?.context;
  if (asked && context) {
    return html`<section class="said prompt"><h2 class="label">context <span>${plural(data.turns[0].context_length, "token")}, masked</span></h2><${Text} text=${context} class="text masked" /></section>`;
  }
  return html`${data.prompt.map(({role, text}) => html`<section class="said prompt"><h2 class="label"><bdi>${named(role)}</bdi></h2><${Text} text=${text} most=${4000} /></section>`)}
    ${data.opening && html`<section class="said prompt"><h2 class="label">the environment's opening</h2><${Text} text=${data.opening} most=${4000} /></section>`}`;
}

async function copy(run, key, form) {
  await navigator.clipboard.writeText(await getText("copy", {run: run.key, key, form}));
}

function Copies({run, trajectory}) {
  const [said, setSaid] = useState("");
  const take = form => copy(run, trajectory, form).then(() => setSaid("Copied."), error => setSaid(error.message));
  return html`<label>Copy as <select value="" onChange=${e => { take(e.target.value); e.target.value = ""; }}>
    <option value="">…</option>${COPIES.map(([form, title]) => html`<option value=${form}>${title}</option>`)}</select></label><span role="status" class="note">${said}</span>`;
}
