// Distributions: a histogram of numbers, and a list of shares.
import {html} from "./core.js";
import {number, percent} from "./format.js";

const BINS = 24;

function bins(values) {
  const low = Math.min(...values), high = Math.max(...values);
  const distinct = [...new Set(values)].sort((a, b) => a - b);
  if (distinct.length <= 12) {
    return distinct.map(value => ({low: value, high: value, count: values.filter(v => v === value).length}));
  }
  const width = (high - low) / BINS;
  const made = Array.from({length: BINS}, (_, i) => ({low: low + i * width, high: low + (i + 1) * width, count: 0}));
  for (const value of values) made[Math.min(BINS - 1, Math.floor((value - low) / width))].count++;
  return made;
}

export function Histogram({title, values, colour = "c1"}) {
  const known = values.filter(value => value !== null && value !== undefined);
  if (!known.length) return null;
  const found = bins(known);
  const most = Math.max(...found.map(bin => bin.count));
  const mean = known.reduce((a, b) => a + b, 0) / known.length;
  const label = bin => bin.low === bin.high ? number(bin.low) : `${number(bin.low)} to ${number(bin.high)}`;
  const sentence = `${title}: ${found.map(bin => `${label(bin)}, ${bin.count}`).join("; ")}`;
  const step = 240 / found.length;
  return html`<figure class="histogram">
    <figcaption><span class="name">${title}</span><span class="at">mean ${number(mean)}</span></figcaption>
    <svg viewBox="0 0 240 72" preserveAspectRatio="none" role="img" aria-label=${sentence} class=${colour}>
      ${found.map((bin, i) => html`<rect x=${i * step + step * 0.08} width=${step * 0.84}
        y=${72 - 70 * bin.count / most} height=${70 * bin.count / most}><title>${label(bin)}: ${bin.count}</title></rect>`)}
    </svg>
    <div class="ends"><span>${label(found[0])}</span>${found.length > 1 && html`<span>${label(found.at(-1))}</span>`}</div>
  </figure>`;
}

// counts: {name: count}
export function Shares({title, counts, colourOf = () => "c1", onPick}) {
  const total = Object.values(counts).reduce((a, b) => a + b, 0);
  const sorted = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  return html`<figure class="shares"><figcaption><span class="name">${title}</span><span class="at">${number(total)}</span></figcaption>
    <ul>${sorted.map(([name, count]) => html`<li>
      <span class="what">${onPick ? html`<button class="plain" onClick=${() => onPick(name)}>${name}</button>` : name}</span>
      <meter class=${colourOf(name)} min="0" max=${total} value=${count} aria-label=${name}></meter>
      <b>${percent(count / total)}</b><small>${number(count)}</small></li>`)}</ul></figure>`;
}
