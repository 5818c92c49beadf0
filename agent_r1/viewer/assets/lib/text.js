// Text that nobody here wrote: always text nodes, in a bidi isolate, and never without end.
import {html, useState} from "./core.js";
import {number} from "./format.js";

export const MOST_CHARACTERS = 20000;

// C0 and C1 controls but tab and newline, and characters that have no width or turn the text
// around: they are named instead of obeyed.
const SPECIAL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

function spelled(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

// The same where there is room for letters alone: in options, titles and labels.
export const legible = text => text.replace(SPECIAL, spelled);

// The text as strings and marked special characters.
export function named(text) {
  const parts = [];
  let last = 0;
  for (const match of text.matchAll(SPECIAL)) {
    if (match.index > last) parts.push(text.slice(last, match.index));
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    parts.push(html`<span class="control" title=${"character U+" + code}>${spelled(match[0])}</span>`);
    last = match.index + match[0].length;
  }
  if (last < text.length) parts.push(text.slice(last));
  return parts;
}

// `children` may draw the text that is shown, as code does; by default it is drawn as it is.
export function Text({text, most = MOST_CHARACTERS, draw = named, ...rest}) {
  const [all, setAll] = useState(false);
  const cut = !all && text.length > most;
  return html`<div class="text" dir="auto" ...${rest}
    ><bdi>${draw(cut ? text.slice(0, most) : text)}</bdi>${cut && html`<button class="more"
      onClick=${() => setAll(true)}>show all ${number(text.length)} characters</button>`}</div>`;
}

// One line, for lists.
export function Line({text, most = 240}) {
  return html`<bdi>${named(text.slice(0, most).replace(/\s+/g, " "))}</bdi>`;
}
