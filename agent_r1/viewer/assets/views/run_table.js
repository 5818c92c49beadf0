// The table of runs. Settings that differ between them are its last columns.
import {html, useState} from "../lib/core.js";
import {colour} from "../lib/colours.js";
import {ago, duration, metric, number, percent, setting} from "../lib/format.js";
import {Reward, State} from "../lib/parts.js";

const MOST_SETTINGS = 6;
// Names and places differ between all runs and tell nothing.
const NAMES = /(experiment_name|default_local_dir|project_name)$/;

const COLUMNS = [
  ["state", "State", run => run.state],
  ["step", "Step", run => run.step],
  ["reward", "Reward", run => run.reward],
  ["success", "Success", run => run.success],
  ["validation", "Validation", run => run.validation?.value],
  ["updated", "Last step", run => run.updated],
];

export function RunTable({runs, differing, chosen, cursor, onToggle, onOpen}) {
  const [sort, setSort] = useState(null);
  const settings = Object.keys(differing).filter(name => !NAMES.test(name)).slice(0, MOST_SETTINGS);
  const columns = [...COLUMNS, ...settings.map(name => [name, name.split(".").at(-1), run => differing[name][run.key]])];
  const by = sort && columns.find(([name]) => name === sort.name)?.[2];
  const sorted = by ? [...runs].sort((a, b) => sort.sign * compare(by(a), by(b))) : runs;
  const pick = name => setSort(sort?.name === name ? (sort.sign < 0 ? {name, sign: 1} : null) : {name, sign: -1});
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Table of runs"><table class="run-table"><thead><tr>
      <th scope="col"><span class="hidden">In the curves</span></th><th scope="col">Run</th>
      ${columns.map(([name, title]) => html`<th scope="col" title=${name} aria-sort=${sort?.name === name ? (sort.sign > 0 ? "ascending" : "descending") : null}>
        <button class="plain" onClick=${() => pick(name)}>${title}${sort?.name === name ? (sort.sign > 0 ? " ▲" : " ▼") : ""}</button></th>`)}
    </tr></thead><tbody>${sorted.map(run => html`<${Row} key=${run.key} run=${run} at=${runs.indexOf(run) === cursor}
      colour=${chosen.includes(run.key) ? colour(chosenColour(runs, chosen, run)) : null}
      settings=${settings} differing=${differing} onToggle=${onToggle} onOpen=${onOpen} />`)}</tbody></table></div>`;
}

// Seeds of one setting share a colour, in the table as in the curves.
export function chosenColour(runs, chosen, run) {
  const groups = [...new Set(runs.filter(each => chosen.includes(each.key)).map(each => each.group))];
  return groups.indexOf(run.group);
}

function Row({run, at, colour, settings, differing, onToggle, onOpen}) {
  const progress = run.total ? `${number(run.step)} of ${number(run.total)}` : number(run.step);
  const names = settings.map(name => [name.split(".").at(-1), differing[name][run.key]]);
  return html`<tr class=${at ? "at" : ""}>
    <td><label class="tick"><input type="checkbox" checked=${!!colour} disabled=${!run.names.length} onChange=${() => onToggle(run.key)} />
      <span class="hidden">curves of ${run.label}</span>${colour && html`<i class=${"swatch " + colour.slice(2)}></i>`}</label></td>
    <th scope="row"><button class="plain name" onClick=${() => onOpen(run.key)}><bdi>${run.label}</bdi></button>
      ${run.findings.length > 0 && html` <a href="#/alerts" class="count" title=${run.findings.map(f => f.sentence).join("\n")}>${run.findings.length}</a>`}</th>
    <td data-name="State"><${State} state=${run.state} /></td>
    <td data-name="Step">${progress}${run.left !== null && html`<small> ${duration(run.left)} left</small>`}</td>
    <td data-name="Reward">${run.reward === null && run.loss !== null ? html`<small>loss</small> ${number(run.loss)}` : run.reward === null ? "–" : html`<${Reward} value=${run.reward} />`}</td>
    <td data-name="Success">${percent(run.success)}</td>
    <td data-name="Validation" title=${run.validation?.name}>${run.validation ? metric(run.validation.name, run.validation.value) : "–"}${run.validation?.low != null && html`<small> ${metric(run.validation.name, run.validation.low)} to ${metric(run.validation.name, run.validation.high)}</small>`}</td>
    <td data-name="Last step">${ago(run.updated)}</td>
    ${names.map(([name, value]) => html`<td data-name=${name} class="setting">${value === undefined ? "–" : setting(value)}</td>`)}
  </tr>`;
}

function compare(a, b) {
  if (a === undefined || a === null) return b === undefined || b === null ? 0 : -1;
  if (b === undefined || b === null) return 1;
  return a < b ? -1 : a > b ? 1 : 0;
}
