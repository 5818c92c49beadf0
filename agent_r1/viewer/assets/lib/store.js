// What the reader chose stays in this browser, and only here.
import {useState} from "./core.js";

export function read(name, otherwise) {
  try {
    const text = localStorage.getItem("agent-r1/" + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

export function write(name, value) {
  try {
    localStorage.setItem("agent-r1/" + name, JSON.stringify(value));
  } catch {
    // A browser that keeps nothing shows everything all the same.
  }
}

export function useStored(name, otherwise) {
  const [value, setValue] = useState(() => read(name, otherwise));
  const set = next => setValue(old => {
    const made = typeof next === "function" ? next(old) : next;
    write(name, made);
    return made;
  });
  return [value, set];
}
