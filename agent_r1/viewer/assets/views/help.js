// The keys of the view that is open.
import {html, useEffect, useRef} from "../lib/core.js";
import {known} from "../lib/keys.js";

export function Help({onClose}) {
  const dialog = useRef(null);
  useEffect(() => { dialog.current.showModal(); }, []);
  return html`<dialog ref=${dialog} onClose=${onClose} aria-labelledby="help-title"
    onClick=${event => event.target === dialog.current && dialog.current.close()}>
    <form method="dialog"><h2 id="help-title">Keys</h2>
    <dl class="keys">${known().map(([key, name]) => html`<div><dt>${key.split(" ").map(each => html`<kbd>${shown(each)}</kbd> `)}</dt><dd>${name}</dd></div>`)}</dl>
    <button value="close">Close</button></form>
  </dialog>`;
}

const NAMES = {ArrowDown: "↓", ArrowUp: "↑", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc"};
const shown = key => NAMES[key] || key;
