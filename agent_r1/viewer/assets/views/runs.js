// All runs: a table, and curves of those that are ticked.
import {html, useMemo, useState} from "../lib/core.js";
import {useShared} from "../lib/api.js";
import {useKeys} from "../lib/keys.js";
import {later} from "../lib/later.js";
import {go} from "../lib/route.js";
import {Alert} from "./alerts.js";
import {RunTable} from "./run_table.js";

const SHOWN_FIRST = 8;
const Curves = later(() => import("./curves.js"), "Curves");

export function Runs({route}) {
  const {runs, differing} = useShared();
  const asked = route.query.runs?.split(",").filter(key => runs.some(run => run.key === key));
  const first = runs.filter(run => run.names.length).slice(0, SHOWN_FIRST).map(run => run.key);
  const chosen = asked ?? first;
  const order = useMemo(() => runs.map(run => run.key), [runs]);
  const [cursor, setCursor] = useState(-1);
  const set = query => go([], {...route.query, ...query}, {replace: true});
  const toggle = key => set({runs: order.filter(each => (each === key) !== chosen.includes(each)).join(",") || "none"});
  const open = key => {
    const run = runs.find(each => each.key === key);
    go(["run", key, run.has_trajectories ? "step" : "settings"]);
  };
  useKeys({
    j: ["next run", () => setCursor(Math.min(cursor + 1, runs.length - 1))],
    k: ["run before", () => setCursor(Math.max(cursor - 1, 0))],
    Enter: ["open the run", event => cursor >= 0 && !event.target.closest("a, button, summary") ? open(order[cursor]) : event.target.click?.()],
    x: ["tick the run", () => cursor >= 0 && toggle(order[cursor])],
    l: ["logarithmic scale", () => set({log: route.query.log ? "" : "1"})],
    "/": ["find a metric", () => document.getElementById("find-metric")?.focus()],
  });
  const alerts = runs.filter(run => run.state === "training" || runs.length === 1)
    .flatMap(run => run.findings.slice(-2).map(finding => ({...finding, run}))).slice(-3);
  return html`<section class="runs"><h1 class="hidden">Runs</h1>
    ${alerts.length > 0 && html`<ul class="alerts" aria-label="Newest alerts">${alerts.map(alert => html`<${Alert} alert=${alert} />`)}</ul>`}
    <${RunTable} runs=${runs} differing=${differing} chosen=${chosen} cursor=${cursor} onToggle=${toggle} onOpen=${open} />
    <${Curves} runs=${runs.filter(run => chosen.includes(run.key))} all=${runs} query=${route.query} onChange=${set} />
  </section>`;
}
