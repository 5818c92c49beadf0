// One step: what was sampled, how it is distributed, groups of siblings, what was left out.
import {html, useState} from "../lib/core.js";
import {useData, useShared} from "../lib/api.js";
import {Histogram, Shares} from "../lib/bars.js";
import {metric, number, plural} from "../lib/format.js";
import {useKeys} from "../lib/keys.js";
import {Empty, Facts, Problem, Reward, trajectoryLink} from "../lib/parts.js";
import {go, link} from "../lib/route.js";
import {Line} from "../lib/text.js";

const FACTS = [
  ["reward", "critic/rewards/mean"], ["success", "rollout/success"], ["entropy", "actor/entropy"],
  ["KL of the step", "actor/ppo_kl"], ["clipped", "actor/pg_clipfrac"], ["gradient", "actor/grad_norm"],
  ["groups without spread", "rollout/uniform_groups"], ["failed", "rollout/failed"], ["seconds", "timing_s/step"],
];
const FAILED = {tool_error: "a tool or the sandbox failed", engine_error: "the engine failed"};

export function Step({route, run}) {
  const {pulse} = useShared();
  const mark = pulse[run.key];
  const steps = useData(run.has_trajectories ? "steps" : "", {run: run.key}, mark);
  const split = route.query.split || (steps.data?.train.length === 0 ? "val" : "train");
  const known = steps.data?.[split] || [];
  const newest = known.at(-1)?.step;
  const step = route.query.step === undefined ? newest : Number(route.query.step);
  const at = known.findIndex(each => each.step === step);
  const set = query => go(["run", run.key, "step"], {split, step, ...query});
  const move = by => known[at + by] && set({step: known[at + by].step});
  useKeys({
    "[": ["step before", () => move(-1)], "]": ["next step", () => move(1)],
    ArrowLeft: ["step before", () => move(-1)], ArrowRight: ["next step", () => move(1)],
    v: ["training or validation", () => set({split: split === "train" ? "val" : "train", step: ""})],
  });
  const found = useData(step === undefined ? "" : "step", {run: run.key, step, split}, at === known.length - 1 ? mark : "");
  if (!run.has_trajectories) return html`<${Empty}>This run has kept no trajectories${run.state === "training" && " so far"}; its curves are under Runs.<//>`;
  const pending = steps.data?.pending;
  return html`<section><div class="tools head">
      <h1>Step ${step ?? ""}</h1>
      <span class="keep"><button onClick=${() => move(-1)} disabled=${at <= 0} aria-label="step before">‹</button>
      <label><span class="hidden">Step</span><select value=${step} onChange=${e => set({step: e.target.value})}>
        ${known.map(each => html`<option value=${each.step}>step ${each.step}${each.reward === null ? "" : `, reward ${number(each.reward)}`}</option>`)}</select></label>
      <button onClick=${() => move(1)} disabled=${at < 0 || at >= known.length - 1} aria-label="next step">›</button></span>
      <label><span class="hidden">Split</span><select value=${split} onChange=${e => set({split: e.target.value, step: ""})}>
        ${[["train", "training"], ["val", "validation"]].map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select></label>
      ${route.query.step !== undefined && step !== newest && html`<a href=${link(["run", run.key, "step"], {split})}>newest</a>`}
      ${route.query.step === undefined && run.state === "training" && html`<span class="note">follows the run</span>`}
    </div>
    <${Problem} error=${steps.error || found.error} />
    ${pending > 0 && html`<p class="note" role="status">Reading trajectories of earlier steps … ${Math.round(pending / 2 ** 20)} MiB to go.</p>`}
    ${steps.data && !known.length && html`<${Empty}>No trajectory of this split is stored yet.<//>`}
    ${found.data && known.length > 0 && html`<${Content} data=${found.data} run=${run} split=${split} step=${step} />`}
  </section>`;
}

function Content({data, run, split, step}) {
  const rows = data.groups.flatMap(group => group.rows);
  const counts = {};
  for (const row of rows) counts[row.outcome] = (counts[row.outcome] || 0) + 1;
  const numbers = split === "train" ? FACTS.map(([name, key]) => [name, data.metrics[key] === undefined ? null : metric(key, data.metrics[key])]) : [];
  return html`<${Facts} facts=${[["trajectories", number(data.total)], ["groups", number(data.groups.length)], ...numbers, ["staleness", rows.some(row => row.staleness > 0) ? null : "none"]]} />
    ${data.total > rows.length && html`<p class="note">The first ${number(rows.length)} of ${number(data.total)} trajectories are shown.</p>`}
    <div class="small-grid">
      <${Histogram} title="Reward" values=${rows.map(row => row.reward)} colour="c2" />
      <${Histogram} title="Tokens" values=${rows.map(row => row.tokens)} />
      <${Histogram} title="Turns" values=${rows.map(row => row.turns)} colour="c4" />
      <${Histogram} title="Tool calls" values=${rows.map(row => row.tool_calls)} colour="c6" />
      ${rows.some(row => row.staleness > 0) && html`<${Histogram} title="Staleness" values=${rows.map(row => row.staleness)} colour="c7" />`}
      <${Shares} title="Outcomes" counts=${counts} colourOf=${name => FAILED[name] ? "c5" : name === "finished" ? "c3" : "c2"}
        onPick=${outcome => go(["run", run.key, "find"], {outcome, step_from: step, step_to: step, split})} />
    </div>
    <${LeftOut} groups=${data.groups} run=${run} train=${split === "train"} />
    <h2>Groups, those with most spread first</h2>
    <div class="groups">${data.groups.map(group => html`<${Group} key=${group.group} group=${group} run=${run} />`)}</div>`;
}

function Group({group, run}) {
  return html`<article class="group"><header><div class="excerpt"><${Line} text=${group.question || group.task} /></div>
      <span class="note">mean ${number(group.mean)}, spread ${number(group.spread)}</span></header>
    <ol class="siblings">${group.rows.map(row => html`<li><a href=${trajectoryLink(run.key, row.key)} title=${title(row)}
      class=${"sibling " + (row.outcome === "finished" ? "" : "cut")}><${Reward} value=${row.reward} none="?" /><small>${row.tokens}</small></a></li>`)}</ol></article>`;
}

const title = row => `sibling ${row.sibling}: ${row.outcome}, ${plural(row.turns, "turn")}, ${plural(row.tokens, "token")}, ${plural(row.tool_calls, "tool call")}${row.tool_errors ? `, ${row.tool_errors} failed` : ""}`;

// Trajectories that give no gradient, and why.
function LeftOut({groups, run, train}) {
  const [open, setOpen] = useState(false);
  const rows = groups.flatMap(group => group.rows);
  const failed = rows.filter(row => FAILED[row.outcome]).map(row => [row, FAILED[row.outcome]]);
  const unscored = rows.filter(row => row.reward === null && !FAILED[row.outcome]).map(row => [row, "it could not be scored"]);
  const out = [...failed, ...unscored];
  const uniform = train ? groups.filter(group => group.rows.length > 1 && group.spread === 0) : [];
  if (!out.length && !uniform.length) return html`<p class="note">Nothing was left out.</p>`;
  return html`<details class="left-out" onToggle=${e => setOpen(e.target.open)}><summary>What was left out
    <small>${[out.length && plural(out.length, "trajectory").replace("trajectorys", "trajectories"), uniform.length && `${plural(uniform.length, "group")} without spread`].filter(Boolean).join(", ")}</small></summary>
    ${open && html`<ul>${out.map(([row, why]) => html`<li><a href=${trajectoryLink(run.key, row.key)}><${Line} text=${row.task} />, sibling ${row.sibling}</a>: ${why}; it takes no part in training.</li>`)}
    ${uniform.map(group => html`<li><a href=${trajectoryLink(run.key, group.rows[0].key)}><${Line} text=${group.question || group.task} most=${80} /></a>: all ${group.rows.length} members score ${number(group.mean)}, so their advantages are 0 where they are measured against the group.</li>`)}</ul>`}</details>`;
}
