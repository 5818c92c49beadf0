// Where the seconds of a trajectory went: the model, the tools, and the rest, which is waiting.
import {html} from "../lib/core.js";
import {duration} from "../lib/format.js";

export function Timeline({turns, seconds}) {
  const parts = turns.flatMap((turn, i) => [
    {kind: "generation", seconds: turn.generate_seconds, name: `turn ${i + 1}, generation`},
    {kind: "tools", seconds: turn.tool_seconds, name: `turn ${i + 1}, tools`},
  ]).filter(part => part.seconds > 0);
  const sum = kind => parts.filter(part => part.kind === kind).reduce((total, part) => total + part.seconds, 0);
  const known = sum("generation") + sum("tools");
  const waiting = Math.max(0, seconds - known);
  const whole = known + waiting;
  if (!whole) return null;
  const shown = waiting / whole > 0.005 ? [...parts, {kind: "waiting", seconds: waiting, name: "waiting"}] : parts;
  const totals = [["generation", sum("generation")], ["tools", sum("tools")], ["waiting", waiting]];
  let at = 0;
  return html`<figure class="timeline"><svg viewBox="0 0 1000 14" preserveAspectRatio="none" role="img"
      aria-label=${"Time: " + totals.map(([name, value]) => `${name} ${duration(value)}`).join(", ")}>
      ${shown.map(part => {
        const x = at;
        at += 1000 * part.seconds / whole;
        return html`<rect class=${part.kind} x=${x} width=${Math.max(1, at - x - 1)} y="0" height="14"><title>${part.name}: ${duration(part.seconds)}</title></rect>`;
      })}</svg>
    <figcaption>${totals.map(([name, value]) => html`<span><i class=${"swatch " + name}></i>${name} ${duration(value)}</span>`)}</figcaption></figure>`;
}
