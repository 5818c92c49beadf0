// Where the seconds of a step go: generation, tools, training, waiting, as shares of one run.
import {html, useState} from "../lib/core.js";
import {useData, useShared} from "../lib/api.js";
import {Chart} from "../lib/chart.js";
import {colour} from "../lib/colours.js";

const WHOLE = "timing_s/step";
const NESTED = /timing_s\/(step|.*\/.*)$/;

export function TimeSplit({runs}) {
  const {pulse, theme} = useShared();
  const having = runs.filter(run => run.names.filter(name => name.startsWith("timing_s/")).length > 1);
  const [key, setKey] = useState("");
  const run = having.find(each => each.key === key) || having[0];
  const names = run ? run.names.filter(name => name.startsWith("timing_s/") && !NESTED.test(name)) : [];
  const {data} = useData(run ? "metrics" : "", {run: run?.key, name: [WHOLE, ...names]}, pulse[run?.key]);
  const found = run && data?.[run.key];
  if (!found?.[names[0]]) return null;
  const lines = stacked(found, names);
  return html`<details class="family" open><summary>Where the time goes <small>seconds of a step</small></summary>
    ${having.length > 1 && html`<div class="tools"><label>Run <select value=${run.key} onChange=${e => setKey(e.target.value)}>${having.map(each => html`<option value=${each.key}>${each.label}</option>`)}</select></label></div>`}
    <div class="wide"><${Chart} name="timing_s" title="Seconds of a step, one on the other" lines=${lines} theme=${theme} height=${190} /></div></details>`;
}

// Each part on top of those before it; what the parts leave of the step is "other".
function stacked(found, names) {
  const whole = found[WHOLE];
  const steps = whole.steps.length ? whole.steps : found[names[0]].steps;
  const at = name => new Map(found[name].steps.map((step, i) => [step, found[name].values[i]]));
  const sum = name => found[name].values.reduce((a, b) => a + b, 0);
  const sorted = [...names].sort((a, b) => sum(b) - sum(a)).slice(0, 6);
  let below = steps.map(() => 0);
  const lines = sorted.map((name, i) => {
    const map = at(name);
    below = steps.map((step, j) => below[j] + (map.get(step) ?? 0));
    return {label: name.slice("timing_s/".length), colour: colour(i), steps, values: below, fill: true};
  });
  return lines.reverse();
}
