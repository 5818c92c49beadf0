// One trajectory among all: full text and filters, saved searches, a link for every search.
import {html, useEffect, useRef, useState} from "../lib/core.js";
import {useData, useShared} from "../lib/api.js";
import {number, plural} from "../lib/format.js";
import {useKeys} from "../lib/keys.js";
import {Empty, Problem, Reward, trajectoryLink} from "../lib/parts.js";
import {go, link} from "../lib/route.js";
import {useStored} from "../lib/store.js";
import {Line, legible} from "../lib/text.js";
import {useTyped} from "../lib/typed.js";

const PAGE = 50;
const OUTCOMES = ["finished", "turn_limit", "length", "context", "timeout", "tool_error", "engine_error"];
const SORTS = [["", "newest first"], ["reward", "reward"], ["tokens", "tokens"], ["turns", "turns"], ["tool_errors", "tool errors"], ["spread", "spread of its group"], ["seconds", "seconds"], ["staleness", "staleness"]];
const NUMBERS = [["reward", "Reward"], ["step", "Step"], ["tokens", "Tokens"]];
const BOUNDS = {reward: ["reward_min", "reward_max"], step: ["step_from", "step_to"], tokens: ["tokens_min", "tokens_max"]};

export function Find({route, run}) {
  const {pulse} = useShared();
  const query = route.query;
  const [cursor, setCursor] = useState(0);
  const list = useRef(null);
  const set = change => go(["run", run.key, "find"], {...query, offset: "", ...change}, {replace: true});
  const found = useData(run.has_trajectories ? "trajectories" : "", {run: run.key, limit: PAGE, ...query}, query.offset ? "" : pulse[run.key]);
  const rows = found.data?.rows || [];
  const offset = Number(query.offset || 0);
  const focus = index => {
    const next = Math.max(0, Math.min(index, rows.length - 1));
    setCursor(next);
    list.current?.children[next]?.querySelector("a")?.focus();
  };
  useEffect(() => setCursor(0), [JSON.stringify(query)]);
  useKeys({
    "/": ["find text", () => document.getElementById("find-text")?.focus()],
    j: ["next trajectory", () => focus(cursor + 1)], k: ["trajectory before", () => focus(cursor - 1)],
    ArrowDown: ["next trajectory", () => focus(cursor + 1)], ArrowUp: ["trajectory before", () => focus(cursor - 1)],
    n: ["next page", () => offset + PAGE < found.data?.total && set({offset: offset + PAGE})],
    p: ["page before", () => offset && set({offset: Math.max(0, offset - PAGE) || ""})],
  });
  if (!run.has_trajectories) return html`<${Empty}>This run has kept no trajectories.<//>`;
  return html`<section class="find"><h1 class="hidden">Find trajectories</h1>
    <${Filters} query=${query} set=${set} counts=${found.data?.counts} />
    <${Saved} query=${query} run=${run} />
    <${Problem} error=${found.error} />
    <div class="tools" role="status"><strong>${found.data ? plural(found.data.total, "trajectory").replace("trajectorys", "trajectories") : "…"}</strong>
      ${found.data?.pending > 0 && html`<span class="note">still reading, ${Math.round(found.data.pending / 2 ** 20)} MiB to go</span>`}
      ${offset > 0 && html`<button onClick=${() => set({offset: Math.max(0, offset - PAGE) || ""})}>before</button>`}
      ${found.data && offset + PAGE < found.data.total && html`<button onClick=${() => set({offset: offset + PAGE})}>next</button>`}
      ${found.data?.total > PAGE && html`<span class="note">${number(offset + 1)} to ${number(Math.min(offset + PAGE, found.data.total))}</span>`}</div>
    <ol class="rows" ref=${list}>${rows.map((row, i) => html`<${Row} key=${row.key} row=${row} run=${run} query=${query} at=${i === cursor} />`)}</ol>
  </section>`;
}

// What says where the trajectory stands among those found goes with the link.
function Row({row, run, query, at}) {
  return html`<li class=${at ? "at" : ""}><a class="row" href=${trajectoryLink(run.key, row.key, {in: new URLSearchParams(query).toString()})}>
    <span class="top"><${Reward} value=${row.reward} /><span>step ${row.step}</span>${row.split === "val" && html`<span class="tag">validation</span>`}
      <span class=${row.outcome === "finished" ? "" : "cut"}>${row.outcome}</span><span>${plural(row.turns, "turn")}</span><span>${plural(row.tokens, "token")}</span>
      ${row.tool_errors > 0 && html`<span class="cut">${plural(row.tool_errors, "tool error")}</span>`}<span class="source"><${Line} text=${row.task} most=${60} /></span></span>
    <span class="excerpt"><${Line} text=${row.excerpt} /></span></a></li>`;
}

function Filters({query, set, counts}) {
  const [text, type] = useTyped(query.text || "", text => set({text}));
  const select = (name, title, choices) => html`<label>${title}<select value=${query[name] || ""} onChange=${e => set({[name]: e.target.value})}>
    <option value="">any</option>${choices.map(each => [each].flat()).map(([value, shown = value]) => html`<option value=${value}>${legible(shown.slice(0, 60))}</option>`)}</select></label>`;
  const named = kind => Object.entries(counts?.[kind] || {}).map(([name]) => name);
  return html`<form class="filters" role="search" onSubmit=${e => e.preventDefault()}>
    <label class="text">Text<input id="find-text" type="search" value=${text} placeholder="words of the prompt, the model, a tool or an error" onInput=${e => type(e.target.value)} /></label>
    ${select("split", "Split", [["train", "training"], ["val", "validation"]])}
    ${select("outcome", "Outcome", OUTCOMES)}
    ${select("success", "Success", [["true", "solved"], ["false", "not solved"]])}
    ${select("tool_error", "Tools", [["true", "an error"], ["false", "no error"]])}
    ${named("source").length > 1 && select("source", "Source", named("source"))}
    ${named("environment").length > 1 && select("environment", "Environment", named("environment"))}
    ${NUMBERS.map(([kind, title]) => html`<fieldset><legend>${title}</legend>${BOUNDS[kind].map((name, i) => html`<input type="number" step=${kind === "reward" ? "any" : 1}
      aria-label=${`${title} ${i ? "at most" : "at least"}`} placeholder=${i ? "most" : "least"} value=${query[name] || ""} onChange=${e => set({[name]: e.target.value})} />`)}</fieldset>`)}
    <label>Order<select value=${query.sort ? `${query.sort} ${query.descending || "true"}` : ""} onChange=${e => {
      const [sort, descending] = e.target.value.split(" ");
      set({sort, descending: descending || ""});
    }}>${SORTS.flatMap(([name, title]) => name ? [[`${name} true`, `most ${title}`], [`${name} false`, `least ${title}`]] : [["", title]]).map(([value, title]) => html`<option value=${value}>${title}</option>`)}</select></label>
  </form>`;
}

function Saved({query, run}) {
  const [saved, setSaved] = useStored("searches", []);
  const kept = Object.fromEntries(Object.entries(query).filter(([name, value]) => value && name !== "offset"));
  const text = new URLSearchParams(kept).toString();
  const isSaved = saved.some(each => each.text === text);
  if (!text && !saved.length) return null;
  const name = () => Object.entries(kept).map(([key, value]) => `${key} ${value}`).join(", ");
  return html`<div class="saved"><span class="note">Saved:</span>
    ${saved.map(each => html`<span class="tag"><a href=${link(["run", run.key, "find"], Object.fromEntries(new URLSearchParams(each.text)))}><${Line} text=${each.name} most=${60} /></a>
      <button class="plain" aria-label=${"forget " + each.name} onClick=${() => setSaved(old => old.filter(other => other.text !== each.text))}>×</button></span>`)}
    ${text && !isSaved && html`<button onClick=${() => setSaved(old => [...old, {name: name(), text}])}>Save this search</button>`}
    ${text && html`<a href=${link(["run", run.key, "find"])}>Clear</a>`}</div>`;
}
