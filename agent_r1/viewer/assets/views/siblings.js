// The group of a trajectory, and what differs between it and one of its siblings.
import {html, useMemo, useState} from "../lib/core.js";
import {useData} from "../lib/api.js";
import {number} from "../lib/format.js";
import {Reward} from "../lib/parts.js";
import {link} from "../lib/route.js";
import {named} from "../lib/text.js";
import {difference} from "../lib/difference.js";

export function Siblings({data, run, current, query}) {
  const [other, setOther] = useState("");
  const rewards = data.siblings.map(row => row.reward).filter(value => value !== null);
  if (data.siblings.length < 2) return null;
  const mean = rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
  const mate = data.siblings.some(row => row.key === other && row.key !== current) ? other : "";
  return html`<div class="group"><header><span class="note">Siblings, mean reward ${number(mean)}</span>
      <label>Compare with <select value=${mate} onChange=${e => setOther(e.target.value)}><option value="">none</option>
      ${data.siblings.filter(row => row.key !== current).map(row => html`<option value=${row.key}>sibling ${row.sibling}, ${row.reward === null ? "not scored" : "reward " + number(row.reward)}</option>`)}</select></label></header>
    <ol class="siblings">${data.siblings.map(row => html`<li><a class=${"sibling" + (row.outcome === "finished" ? "" : " cut")} aria-current=${row.key === current ? "true" : null}
      href=${link(["run", run.key, "trajectory"], {...query, key: row.key})} title=${`sibling ${row.sibling}: ${row.outcome}`}><${Reward} value=${row.reward} none="?" /><small>${row.tokens}</small></a></li>`)}</ol>
    ${mate && html`<${Difference} data=${data} run=${run} mate=${mate} />`}</div>`;
}

const told = data => data.turns.map(turn => turn.text + (turn.observation ? "\n" + turn.observation : "")).join("\n");

function Difference({data, run, mate}) {
  const found = useData("trajectory", {run: run.key, key: mate});
  const parts = useMemo(() => found.data && difference(told(data), told(found.data)), [data, found.data]);
  if (!parts) return html`<p class="note">${found.error || "Reading …"}</p>`;
  return html`<div class="text difference"><p class="note"><del>only here</del> <ins>only in sibling ${found.data.sibling}</ins></p><bdi>${parts.map(([kind, text]) =>
    kind === "same" ? named(text) : kind === "left" ? html`<del>${named(text)}</del>` : html`<ins>${named(text)}</ins>`)}</bdi></div>`;
}
