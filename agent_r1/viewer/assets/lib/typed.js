// A field that asks while it is typed into.
import {useEffect, useRef, useState} from "./core.js";

const PAUSE_MS = 500;
const WAIT_MS = 130;

// [text, type]: what the field shows, and what is called with every input. `ask` gets the text at
// once where nothing was typed for PAUSE_MS, otherwise when WAIT_MS have passed without another
// letter. When `given`, what the address says, changes otherwise, the field shows that.
export function useTyped(given, ask) {
  const [text, setText] = useState(given);
  const own = useRef({asked: given, last: -PAUSE_MS, timer: 0}).current;
  own.ask = ask;
  useEffect(() => {
    if (given === own.asked) return;
    clearTimeout(own.timer);
    own.asked = given;
    setText(given);
  }, [given]);
  useEffect(() => () => clearTimeout(own.timer), []);
  const type = typed => {
    const now = performance.now(), paused = now - own.last >= PAUSE_MS;
    const send = () => {
      if (typed === own.asked) return;
      own.asked = typed;
      own.ask(typed);
    };
    own.last = now;
    setText(typed);
    clearTimeout(own.timer);
    if (paused) send();
    else own.timer = setTimeout(send, WAIT_MS);
  };
  return [text, type];
}
