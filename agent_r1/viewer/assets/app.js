// The frame: which view is shown, the bar above it, alerts, keys that work everywhere.
import {html, render, useEffect, useRef, useState} from "./lib/core.js";
import {Shared, useRuns} from "./lib/api.js";
import {useKeys} from "./lib/keys.js";
import {later} from "./lib/later.js";
import {go, link, parse, useRoute} from "./lib/route.js";
import {useStored} from "./lib/store.js";
import {Problem, State} from "./lib/parts.js";
import {Alerts, News} from "./views/alerts.js";
import {Runs} from "./views/runs.js";

const PLACES = [["step", "Step"], ["find", "Find"], ["settings", "Settings"]];
const VIEWS = {
  step: later(() => import("./views/step.js"), "Step"),
  find: later(() => import("./views/find.js"), "Find"),
  trajectory: later(() => import("./views/trajectory.js"), "Trajectory"),
  settings: later(() => import("./views/settings.js"), "Settings"),
};
const Help = later(() => import("./views/help.js"), "Help");
const LATER = [...Object.values(VIEWS), Help];

function App() {
  const shared = useRuns();
  const route = useRoute();
  const [theme, setTheme] = useStored("theme", "system");
  const [help, setHelp] = useState(false);
  const main = useRef(null);
  const [, key, place] = route.path[0] === "run" ? route.path : [];
  const run = (shared.runs || []).find(each => each.key === key);
  const near = run || nearest(shared.runs || []);

  useEffect(() => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }, [theme]);
  useEffect(() => { if (shared.runs) requestIdleCallback(() => LATER.forEach(view => view.load())); }, [!shared.runs]);
  useEffect(() => { document.title = title(route, run); }, [route, run?.label]);
  useEffect(() => { main.current?.scrollTo?.(0, 0); scrollTo(0, 0); }, [route.path.join("/")]);

  const dark = theme === "dark" || (theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  const to = name => near && go(["run", near.key, name]);
  useKeys({
    "?": ["this list", () => setHelp(true)],
    "Escape": ["close", () => setHelp(false)],
    "g r": ["go to the runs", () => go([])],
    "g s": ["go to the steps", () => to("step")],
    "g f": ["go to find", () => to("find")],
    "g a": ["go to the alerts", () => go(["alerts"])],
    "g c": ["go to the settings", () => to("settings")],
    "d": ["dark or light", () => setTheme(dark ? "light" : "dark")],
  });

  if (!shared.runs) return html`<${Waiting} error=${shared.error} listed=${!place} />`;
  const View = place ? VIEWS[place] : route.path[0] === "alerts" ? Alerts : Runs;
  const count = shared.runs.reduce((sum, each) => sum + each.findings.length, 0);
  return html`<${Shared.Provider} value=${{...shared, theme: dark ? "dark" : "light"}}>
    <a class="skip" href=${link(route.path, route.query)} onClick=${event => { event.preventDefault(); main.current.focus(); }}>Skip to the content</a>
    <header class="bar">
      <a class="brand" href="#/">Agent-R1</a>
      <nav aria-label="Views">
        <a href="#/" aria-current=${View === Runs ? "page" : null}>Runs</a>
        ${near && PLACES.map(([name, text]) => html`<a href=${link(["run", near.key, name])}
          aria-current=${place === name || (name === "find" && place === "trajectory") ? "page" : null}>${text}</a>`)}
        <a href="#/alerts" aria-current=${View === Alerts ? "page" : null}>Alerts${count > 0 && html` <span class="count">${count}</span>`}</a>
      </nav>
      <div class="side">
        ${run && html`<label class="choose"><span class="hidden">Run</span><select value=${run.key}
          onChange=${event => go(["run", event.target.value, place === "trajectory" ? "find" : place])}>
          ${shared.runs.map(each => html`<option value=${each.key}>${each.label}</option>`)}</select></label>
          <${State} state=${run.state} />`}
        <button class="icon" onClick=${() => setTheme(dark ? "light" : "dark")} aria-label=${dark ? "Light colours" : "Dark colours"}>${dark ? "☀" : "☾"}</button>
        <button class="icon" onClick=${() => setHelp(true)} aria-label="Keys">?</button>
      </div>
    </header>
    <main ref=${main} tabindex="-1">
      <${Problem} error=${shared.error} />
      ${place && !run ? html`<${Problem} error="This run is not among the folders that were opened." />` : html`<${View} route=${route} run=${run} />`}
    </main>
    <${News} />
    ${help && html`<${Help} onClose=${() => setHelp(false)} />`}
  <//>`;
}

// The frame before the runs are known.
function Waiting({error, listed}) {
  return html`<header class="bar"><a class="brand" href="#/">Agent-R1</a><nav aria-label="Views"><a href="#/" aria-current=${listed ? "page" : null}>Runs</a></nav></header>
    <main>${listed && html`<h1>Runs</h1>`}<${Problem} error=${error} />${!error && html`<p class="note" role="status">Reading the runs …</p>`}</main>`;
}

// The run that a reader means who has chosen none: one that trains, else the last that did.
function nearest(runs) {
  const having = runs.filter(each => each.has_trajectories);
  const rank = each => (each.state === "training" ? "1" : "0") + (each.updated || "");
  return [...(having.length ? having : runs)].sort((a, b) => rank(a) < rank(b) ? 1 : -1)[0];
}

function title(route, run) {
  const what = run ? [run.label, route.path[2], route.query.step && "step " + route.query.step] : [route.path[0] || "runs"];
  return what.filter(Boolean).join(" · ") + " · Agent-R1";
}

VIEWS[parse(location.hash).path[2]]?.load(); // while the runs are being read
render(html`<${App} />`, document.getElementById("app"));
