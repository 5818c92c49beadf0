// Curves of the ticked runs: what matters first, then every metric by its family.
import {html, useMemo, useState} from "../lib/core.js";
import {useData, useShared} from "../lib/api.js";
import {Chart, band, smooth} from "../lib/chart.js";
import {colour} from "../lib/colours.js";
import {Empty, Problem} from "../lib/parts.js";
import {chosenColour} from "./run_table.js";
import {TimeSplit} from "./time_split.js";

const FIRST = [
  /^rollout\/success$/, /^val-core\//, /^critic\/rewards\/mean$/, /^train\/loss$/, /^val\/loss$/,
  /^response_length\/mean$/, /^num_turns\/mean$/, /^tool\/calls\/mean$/, /^tool\/success$/,
  /^actor\/entropy$/, /^actor\/ppo_kl$/, /^actor\/(kl_loss|reward_kl_penalty)$/,
  /^rollout\/uniform_groups$/, /^training\/logprob_diff_mean$/,
];
const FAMILIES = {
  "actor": "Policy update", "critic": "Reward and critic", "rollout": "Rollout", "outcome": "Outcomes", "perf": "Hardware and memory",
  "timing_s": "Time", "tool": "Tools", "training": "Training", "val-core": "Validation", "val-aux": "Validation, more",
  "reward": "Reward parts", "train": "Cold start", "val": "Validation of the cold start", "response_length": "Length",
};
const NO_VALUE = {steps: [], values: []};

export function Curves({runs, all, query, onChange}) {
  const names = useMemo(() => [...new Set(runs.flatMap(run => run.names))].sort(), [runs]);
  const weight = Number(query.smooth || 0);
  const found = query.find ? names.filter(matches(query.find)) : null;
  const first = names.filter(name => FIRST.some(pattern => pattern.test(name)))
    .sort((a, b) => rank(a) - rank(b));
  const families = {};
  for (const name of names) (families[name.split("/")[0]] ||= []).push(name);
  const shared = {runs, all, weight, log: !!query.log};
  return html`<div class="curves">
    <div class="tools">
      <label>Metric <input id="find-metric" type="search" placeholder="any part of a name" value=${query.find || ""} onInput=${e => onChange({find: e.target.value})} /></label>
      <label>Smoothing <input type="range" min="0" max="0.95" step="0.05" value=${weight} onInput=${e => onChange({smooth: e.target.value === "0" ? "" : e.target.value})} /> <output>${weight || "none"}</output></label>
      <label><input type="checkbox" checked=${!!query.log} onChange=${e => onChange({log: e.target.checked ? "1" : ""})} /> logarithmic</label>
    </div>
    ${!runs.length && html`<${Empty}>Tick a run to see its curves.<//>`}
    ${found ? html`<${Grid} names=${found} ...${shared} />${!found.length && html`<${Empty}>No metric of these runs has “${query.find}” in its name.<//>`}`
      : html`<${Grid} names=${first} ...${shared} />
        ${runs.length > 0 && html`<${TimeSplit} runs=${runs} />`}
        ${Object.entries(families).map(([family, members]) => html`<${Family} key=${family} family=${family} names=${members} shared=${shared} />`)}`}
  </div>`;
}

function matches(text) {
  const parts = text.toLowerCase().split(/\s+/).filter(Boolean);
  return name => parts.every(part => name.toLowerCase().includes(part));
}

const rank = name => FIRST.findIndex(pattern => pattern.test(name));

function Family({family, names, shared}) {
  const [open, setOpen] = useState(false);
  return html`<details class="family" onToggle=${e => setOpen(e.target.open)}><summary>${FAMILIES[family] || family}
    <small>${names.length} ${names.length === 1 ? "metric" : "metrics"}</small></summary>${open && html`<${Grid} names=${names} ...${shared} />`}</details>`;
}

function Grid({names, runs, all, weight, log}) {
  const {pulse, theme} = useShared();
  const keys = runs.map(run => run.key);
  const {data, error} = useData(names.length && keys.length ? "metrics" : "", {run: keys, name: names}, keys.map(key => pulse[key]).join());
  const meanings = useData(names.length ? "meanings" : "", {name: names}).data;
  return html`<${Problem} error=${error} /><div class="grid">${data && names.map(name => {
    const shown = {name, theme, log, meaning: meanings?.[name], lines: linesOf(name, runs, all, data, weight)};
    return VALIDATED.test(name) ? html`<${Validated} key=${name} runs=${runs} ...${shown} />` : html`<${Chart} key=${name} ...${shown} />`;
  })}</div>`;
}

const VALIDATED = /^val-core\/.*\/mean@\d+$/;

// A single run's validation has the 95 % interval of its tasks as a band.
function Validated({runs, lines, name, ...rest}) {
  const {pulse} = useShared();
  const keys = runs.filter(run => run.has_trajectories && run.names.includes(name)).map(run => run.key);
  const {data} = useData(keys.length ? "interval" : "", {run: keys, name}, keys.map(key => pulse[key]).join());
  const made = lines.map(line => {
    const found = line.run && !line.low && data?.runs[line.run];
    return found && found.steps.join() === line.steps.join() ? {...line, low: found.low, high: found.high} : line;
  });
  return html`<${Chart} name=${name} ...${rest} lines=${made} note=${made.some((line, i) => line.low && !lines[i].low) ? "Band: 95 % interval of the tasks" : null} />`;
}

// A line for each setting, over its seeds; a single run has its raw values faint behind the mean.
function linesOf(name, runs, all, data, weight) {
  const groups = new Map();
  for (const run of runs) {
    if (!groups.has(run.group)) groups.set(run.group, []);
    groups.get(run.group).push(run);
  }
  const lines = [];
  const chosen = runs.map(run => run.key);
  for (const members of groups.values()) {
    const raw = members.map(run => data[run.key]?.[name] || NO_VALUE).filter(each => each.steps.length);
    if (!raw.length) continue;
    const stroke = colour(chosenColour(all, chosen, members[0]));
    const label = raw.length > 1 ? `${members[0].group}` : members[0].label;
    const points = /^val-|^val\//.test(name);
    const smoothed = raw.map(each => weight && !points ? {...each, values: smooth(each.values, weight)} : each);
    if (weight && !points) for (const each of raw) lines.push({label: "", colour: stroke, faint: true, ...each});
    const made = raw.length > 1 ? band(smoothed) : smoothed[0];
    lines.push({label, colour: stroke, points, run: members.length === 1 ? members[0].key : null, ...made});
  }
  return lines.filter(line => line.steps.length);
}
