// Numbers and times for people.
export const DASH = "–";

export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  if (Number.isInteger(value)) return Math.abs(value) < 1e15 ? grouped(value) : value.toExponential(2);
  const size = Math.abs(value);
  if (size >= 10000) return grouped(Math.round(value));
  if (size >= 0.001) return String(+value.toPrecision(3));
  return value.toExponential(1);
}

function grouped(value) {
  const text = String(value);
  return Math.abs(value) < 10000 ? text : text.replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

export function percent(value) {
  if (value === null || value === undefined) return DASH;
  return (100 * value).toFixed(Math.abs(value) < 0.0995 && value !== 0 ? 1 : 0) + " %";
}

// Metrics that are shares by their name.
const SHARES = /(success|clip_ratio|clipfrac|_share|failed|unscored|uniform_groups|accuracy\/mean)|^outcome\//;
export const isShare = name => SHARES.test(name);
export const metric = (name, value) => isShare(name) ? percent(value) : number(value);

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 0.0995) return Math.round(seconds * 1000) + " ms";
  if (seconds < 60) return +seconds.toPrecision(2) + " s";
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return minutes + " min";
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

export function ago(time) {
  if (!time) return DASH;
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  return seconds < 10 ? "now" : duration(seconds) + " ago";
}

export const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

export function setting(value) {
  return typeof value === "string" ? value : value === undefined ? DASH : JSON.stringify(value);
}
