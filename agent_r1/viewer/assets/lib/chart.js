// Curves, drawn by uPlot, with the values under the pointer written beneath.
import uPlot from "../vendor/uplot.js";
import {html, useEffect, useRef, useState} from "./core.js";
import {metric} from "./format.js";
import {legible, named} from "./text.js";

export const resolved = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// An exponential mean as in TensorBoard, without its pull towards the first value.
export function smooth(values, weight) {
  let mean = 0, total = 0;
  return values.map(value => {
    mean = mean * weight + (1 - weight) * value;
    total = total * weight + (1 - weight);
    return mean / total;
  });
}

// Mean, smallest and largest value over the curves, at each step that all of them have.
export function band(curves) {
  const maps = curves.filter(c => c.steps.length).map(c => new Map(c.steps.map((s, i) => [s, c.values[i]])));
  if (!maps.length) return {steps: [], values: [], low: [], high: []};
  const steps = [...maps[0].keys()].filter(step => maps.every(map => map.has(step)));
  const columns = steps.map(step => maps.map(map => map.get(step)));
  return {
    steps,
    values: columns.map(c => c.reduce((a, b) => a + b) / c.length),
    low: columns.map(c => Math.min(...c)),
    high: columns.map(c => Math.max(...c)),
  };
}

// lines: [{label, colour: "--c1", steps, values, low?, high?, faint?, fill?, points?}]
function aligned(lines, log) {
  const steps = [...new Set(lines.flatMap(line => line.steps))].sort((a, b) => a - b);
  const at = new Map(steps.map((step, i) => [step, i]));
  const column = (line, values) => {
    const made = new Array(steps.length).fill(null);
    line.steps.forEach((step, i) => {
      const value = values[i];
      made[at.get(step)] = log && !(value > 0) ? null : value;
    });
    return made;
  };
  const data = [steps], series = [{}], bands = [], shown = [];
  for (const line of lines) {
    const stroke = resolved(line.colour);
    const few = line.points || line.steps.length < 2;
    shown.push({line, at: data.length});
    series.push({
      stroke, width: line.faint ? 1 : 2, alpha: line.faint ? 0.3 : 1, spanGaps: true,
      points: {show: few, size: 6, fill: stroke}, fill: line.fill ? stroke + "55" : undefined,
    });
    data.push(column(line, line.values));
    if (line.low) {
      for (const edge of [line.high, line.low]) {
        series.push({stroke, width: 0, spanGaps: true, points: {show: false}});
        data.push(column(line, edge));
      }
      bands.push({series: [data.length - 2, data.length - 1], fill: stroke + "33"});
    }
  }
  return {data, series, bands, shown};
}

const ticks = name => (_, splits) => splits.map(value => value === null ? "" : metric(name, value));

function options({name, log, width, height, series, bands, sync, onCursor}) {
  const axis = {stroke: resolved("--muted"), grid: {stroke: resolved("--line"), width: 1}, ticks: {show: false}, font: "11px system-ui, sans-serif"};
  return {
    width, height, series, bands,
    legend: {show: false},
    cursor: {sync: {key: sync}, points: {size: 6}, drag: {x: true, y: false}},
    scales: {x: {time: false}, y: log ? {distr: 3} : {range: padded}},
    axes: [
      {...axis, grid: {show: false}, size: 26, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5]},
      {...axis, size: 54, values: ticks(name)},
    ],
    hooks: {setCursor: [plot => onCursor(plot.cursor.idx)]},
  };
}

function padded(plot, low, high) {
  if (low === null || low === undefined) return [0, 1];
  if (low >= 0 && low < 0.5 * high) low = 0;
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low === 0 ? 0 : low - room, high + room];
}

export function Chart({name, title = name, lines, log = false, height = 170, sync = "steps", theme, note, meaning}) {
  const place = useRef(null);
  const [index, setIndex] = useState(null);
  const made = lines.length ? aligned(lines, log) : null;
  const key = JSON.stringify([lines.map(l => [l.label, l.colour, l.steps.length, l.values.at(-1), l.values[0], l.values[l.values.length >> 1], !!l.low, !!l.faint]), log, height, theme]);
  useEffect(() => {
    if (!made) return undefined;
    const node = place.current;
    const width = () => Math.max(200, node.clientWidth);
    const plot = new uPlot(options({name, log, width: width(), height, sync, onCursor: setIndex, ...made}), made.data, node);
    const watcher = new ResizeObserver(() => plot.setSize({width: width(), height}));
    watcher.observe(node);
    return () => { watcher.disconnect(); plot.destroy(); };
  }, [key]);
  if (!made) return null;
  const at = index ?? made.data[0].length - 1;
  const step = made.data[0][at];
  return html`<figure class="chart">
    <figcaption><span class="name" title=${meaning}>${named(title)}</span><span class="at">${step === undefined ? "" : "step " + step}</span></figcaption>
    <div class="plot" ref=${place} role="img" aria-label=${described(title, lines, meaning)}></div>
    <ul class="legend">${made.shown.filter(({line}) => !line.faint).map(({line, at: column}) => html`
      <li><i class=${"swatch " + line.colour.slice(2)}></i><bdi>${line.label}</bdi>
        <b>${metric(name, near(made.data[column], at))}</b>${line.low && html` <small>
        ${metric(name, made.data[column + 2][at])} to ${metric(name, made.data[column + 1][at])}</small>`}</li>`)}
    </ul>${note && html`<p class="note">${note}</p>`}
  </figure>`;
}

// The value here, or the one before it where a series is not measured at every step.
function near(values, at) {
  for (let i = Math.min(at, values.length - 1); i >= 0; i--) if (values[i] !== null) return values[i];
  return null;
}

function described(title, lines, meaning) {
  const last = lines.filter(line => !line.faint).map(line =>
    `${line.label}: ${metric(title, line.values.at(-1))} at step ${line.steps.at(-1)}`);
  return legible(`${title}${meaning ? `, ${meaning}` : ""}. ${last.join("; ")}`);
}
