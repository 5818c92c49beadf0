// What looks wrong in the runs, each with what it may mean and what to try.
import {html, useEffect, useRef, useState} from "../lib/core.js";
import {useShared} from "../lib/api.js";
import {Empty} from "../lib/parts.js";
import {link} from "../lib/route.js";

const all = runs => runs.flatMap(run => run.findings.map(finding => ({...finding, run})));

export function Alerts() {
  const {runs} = useShared();
  const found = all(runs).sort((a, b) => b.step - a.step);
  return html`<section><h1>Alerts</h1>
    <p class="note">A check looks at the median of five steps. It stops nothing: it says where to look.</p>
    ${found.length === 0 && html`<${Empty}>No check finds anything wrong.<//>`}
    <ul class="alerts">${found.map(alert => html`<${Alert} alert=${alert} />`)}</ul></section>`;
}

export function Alert({alert}) {
  const [head, ...rest] = alert.sentence.split(". ");
  return html`<li class="alert"><div><strong>${head}.</strong> ${rest.join(". ")}</div>
    <div class="where"><a href=${link(["run", alert.run.key, "step"], {step: alert.step})}>step ${alert.step}</a>
    <a href=${link([], {runs: alert.run.key, find: alert.metric})}>${alert.metric}</a> <bdi>${alert.run.label}</bdi></div></li>`;
}

// Alerts that come while the page is open are told once, in a corner and to screen readers.
export function News() {
  const {runs} = useShared();
  const seen = useRef(null);
  const [news, setNews] = useState([]);
  useEffect(() => {
    const found = all(runs);
    const name = alert => `${alert.run.key} ${alert.step} ${alert.check}`;
    if (seen.current) {
      const fresh = found.filter(alert => !seen.current.has(name(alert)));
      if (fresh.length) setNews(old => [...old, ...fresh].slice(-3));
    }
    seen.current = new Set(found.map(name));
  }, [runs]);
  return html`<div class="news" role="status">${news.map(alert => html`<div class="alert">
    <strong>${alert.run.label}, step ${alert.step}</strong> ${alert.sentence}
    <button class="plain" onClick=${() => setNews(old => old.filter(each => each !== alert))}>Dismiss</button></div>`)}</div>`;
}
