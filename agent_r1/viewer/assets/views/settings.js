// Settings of a run beside those of others, and where the run came from.
import {html, useState} from "../lib/core.js";
import {useData, useShared} from "../lib/api.js";
import {setting} from "../lib/format.js";
import {Empty, Facts, Problem} from "../lib/parts.js";
import {go} from "../lib/route.js";
import {named} from "../lib/text.js";

export function Settings({route, run}) {
  const {runs} = useShared();
  const [text, setText] = useState("");
  const [same, setSame] = useState(false);
  const other = route.query.with && runs.find(each => each.key === route.query.with);
  const mine = useData("run", {run: run.key}, run.state);
  const theirs = useData(other ? "run" : "", {run: other?.key});
  const a = mine.data?.settings || {}, b = other ? theirs.data?.settings || {} : null;
  const names = [...new Set([...Object.keys(a), ...Object.keys(b || {})])].sort();
  const differ = name => b && setting(a[name]) !== setting(b[name]);
  const shown = names.filter(name => (!b || same || differ(name)) &&
    (!text || (name + " " + setting(a[name])).toLowerCase().includes(text.toLowerCase())));
  return html`<section><h1>Settings</h1>
    <${Problem} error=${mine.error || theirs.error} />
    ${mine.data && html`<${Origin} record=${mine.data.record} />`}
    <div class="tools">
      <label>Find <input type="search" value=${text} onInput=${e => setText(e.target.value)} /></label>
      <label>Compare with <select value=${other?.key || ""} onChange=${e => go(["run", run.key, "settings"], {with: e.target.value})}>
        <option value="">no other run</option>${runs.filter(each => each.key !== run.key).map(each => html`<option value=${each.key}>${each.label}</option>`)}</select></label>
      ${b && html`<label><input type="checkbox" checked=${same} onChange=${e => setSame(e.target.checked)} /> also equal ones</label>`}
    </div>
    ${mine.data && !shown.length && html`<${Empty}>${b && !text ? "The settings of the two runs are the same." : "No setting fits."}<//>`}
    ${shown.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Settings"><table class="settings"><thead><tr><th scope="col">Setting</th><th scope="col"><bdi>${run.label}</bdi></th>${b && html`<th scope="col"><bdi>${other.label}</bdi></th>`}</tr></thead>
      <tbody>${shown.map(name => html`<tr class=${differ(name) ? "differs" : ""}><th scope="row">${breakable(name)}</th><td>${named(setting(a[name]))}</td>${b && html`<td>${named(setting(b[name]))}</td>`}</tr>`)}</tbody></table></div>`}
  </section>`;
}

// A long name may go on in the next line after a dot or an underscore.
const breakable = name => name.split(/(?<=[._])/).map((part, i) => i ? html`<wbr />${part}` : part);

function Origin({record}) {
  const hardware = record.hardware || {};
  const sessions = record.sessions || [];
  const changes = sessions.flatMap(each => Object.entries(each.changes || {}).map(([key, {before, after}]) => [each.from_step, key, before, after]));
  return html`<${Facts} facts=${[
    ["begun", record.created?.replace("T", " ").replace(/(:\d\d):\d\d(\.\d+)?\+00:00$/, "$1 UTC")], ["version", record.agent_r1], ["revision", record.git?.revision?.slice(0, 10)],
    ["Python", record.python], ["torch", record.packages?.torch], ["processor", hardware.cpu], ["cores", hardware.cpu_cores],
    ["memory", hardware.memory_bytes && Math.round(hardware.memory_bytes / 2 ** 30) + " GiB"], ["GPUs", hardware.gpus?.join(", ")],
    ["sessions", sessions.length || null], ["command", record.command && named(record.command.join(" "))],
  ]} />
  ${changes.length > 0 && html`<h2>Changed while it ran</h2><ul>${changes.map(([step, key, before, after]) =>
    html`<li>after step ${step}: <code>${key}</code> from ${setting(before)} to ${setting(after)}</li>`)}</ul>`}`;
}
