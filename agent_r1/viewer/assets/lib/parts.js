// Small things that several views show.
import {html} from "./core.js";
import {number} from "./format.js";
import {link} from "./route.js";
import {named} from "./text.js";

export function Reward({value, none = "not scored"}) {
  const kind = value === null || value === undefined ? "none" : value > 0 ? "good" : "bad";
  return html`<span class=${"badge " + kind}>${kind === "none" ? none : number(value)}</span>`;
}

export function State({state}) {
  return html`<span class=${"state " + state}><i aria-hidden="true"></i>${state}</span>`;
}

export function Problem({error}) {
  return error ? html`<p class="problem" role="alert">${named(error)}</p>` : null;
}

export function Empty({children}) {
  return html`<p class="empty">${children}</p>`;
}

export const trajectoryLink = (run, key, query = {}) => link(["run", run, "trajectory"], {key, ...query});

export function Facts({facts}) {
  return html`<dl class="facts">${facts.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => html`<div><dt>${named(name)}</dt><dd>${value}</dd></div>`)}</dl>`;
}
