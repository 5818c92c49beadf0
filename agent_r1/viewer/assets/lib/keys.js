// The keyboard: each view names its keys, and "?" lists them.
import {useLayoutEffect} from "./core.js";

const layers = [];
let prefix = "";

// `keys` is {key: [what it does, function]}; "g r" is one key after another.
export function useKeys(keys) {
  useLayoutEffect(() => { // at once: the next key may come before the next frame
    layers.push(keys);
    return () => { layers.splice(layers.indexOf(keys), 1); };
  });
}

export const known = () => Object.entries(Object.assign({}, ...layers)).map(([key, [name]]) => [key, name]);

const isTyping = target => target.closest?.("input:not([type=checkbox]):not([type=range]), textarea, select");

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (isTyping(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const pressed = prefix ? `${prefix} ${event.key}` : event.key;
  prefix = "";
  for (const layer of [...layers].reverse()) {
    if (layer[pressed]) {
      event.preventDefault();
      layer[pressed][1](event);
      return;
    }
  }
  if (layers.some(layer => Object.keys(layer).some(key => key.startsWith(pressed + " ")))) {
    prefix = pressed;
    setTimeout(() => { prefix = ""; }, 1500);
  }
});
