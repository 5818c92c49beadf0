// What can be told of a token, and its colour.
import {html} from "../lib/core.js";
import {number} from "../lib/format.js";

// value(tokens, i): of token i, null where it is not known. scale(value): 0 (no colour) to 1, or
// -1 to 1 where there are two colours.
export const MEASURES = {
  probability: {
    title: "probability", needs: ["logprobs"], ends: ["certain", "unlikely"], kind: "one",
    value: (tokens, i) => Math.exp(tokens.logprobs[i]), scale: value => 1 - value,
  },
  advantage: {
    title: "advantage", needs: ["advantages"], ends: ["below", "above"], kind: "two",
    value: (tokens, i) => tokens.advantages[i], scale: (value, most) => value / (most || 1),
  },
  entropy: {
    title: "entropy (nats)", needs: ["entropies"], ends: ["none", "high"], kind: "one",
    value: (tokens, i) => tokens.entropies[i], scale: value => Math.min(1, value / 3),
  },
  difference: {
    title: "engine minus trainer (nats)", needs: ["differences"], ends: ["trainer surer", "engine surer"], kind: "two",
    value: (tokens, i) => tokens.differences[i], scale: value => Math.max(-1, Math.min(1, value / 0.5)),
  },
  version: {
    title: "version of the policy", needs: ["versions"], ends: ["older", "newest"], kind: "versions",
    value: (tokens, i) => tokens.versions[i], scale: (value, most) => most - value,
  },
};

export const available = (name, data) => MEASURES[name].needs.every(need => need in data.measured);

// The greatest size of a measure in a trajectory, for scales that depend on it.
export const greatest = (name, data) => Math.max(0, ...MEASURES[name].needs.map(need => data.measured[need] ?? 0));

// A class out of nine steps: the content security policy allows no colours in attributes.
export function shade(name, tokens, i, most) {
  const {kind, value, scale, needs} = MEASURES[name];
  if (!needs.every(need => tokens[need])) return "";
  const known = value(tokens, i);
  if (known === null || known === undefined) return "";
  if (kind === "versions") return "v" + Math.min(7, scale(known, most));
  const size = scale(known, most);
  const step = Math.min(8, Math.round(Math.abs(size) * 8));
  return step === 0 ? "" : (kind === "two" && size > 0 ? "plus" : "heat") + step;
}

export function Legend({measure, data}) {
  const {kind, ends} = MEASURES[measure];
  const steps = [1, 2, 3, 4, 5, 6, 7, 8];
  const classes = kind === "one" ? ["heat0", ...steps.map(i => "heat" + i)]
    : kind === "two" ? [...steps.map(i => "heat" + i).reverse(), "heat0", ...steps.map(i => "plus" + i)]
    : ["v3", "v2", "v1", "v0"];
  const edge = measure === "advantage" ? greatest(measure, data) : null;
  return html`<span class="scale-legend"><span>${ends[0]}${edge ? " " + number(-edge) : ""}</span><span class="scale" aria-hidden="true">${classes.map(each => html`<i class=${each}></i>`)}</span><span>${ends[1]}${edge ? " " + number(edge) : ""}</span>
    <span class="masked-mark">grey: masked, not trained on</span></span>`;
}
