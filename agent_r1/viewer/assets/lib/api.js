// What the server knows, as JSON. See agent_r1/viewer/api.py.
import {createContext, useContext, useEffect, useRef, useState} from "./core.js";
import {legible} from "./text.js";

export async function get(name, params = {}, signal = undefined) {
  const answer = await fetch("api/" + name + search(params), {signal});
  const body = await answer.json().catch(() => ({error: `the server answered ${answer.status}`}));
  if (!answer.ok) throw new Error(body.error || `the server answered ${answer.status}`);
  return body;
}

export async function getText(name, params) {
  const answer = await fetch("api/" + name + search(params));
  const text = await answer.text();
  if (!answer.ok) throw new Error(text);
  return text;
}

// A list gives its name several times.
function search(params) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const each of [value].flat()) {
      if (each !== undefined && each !== null && each !== "") found.append(name, each);
    }
  }
  return found.size ? "?" + found : "";
}

const PENDING_MS = 500;

// {data, error}: the answer, and the one before while a new one is under way. `mark` asks anew
// when it changes, and so does an answer that says that more is being read; without a name nothing
// is asked. An answer to an earlier mark is shown until that of a later one comes: a run may write
// faster than the server answers. What is asked under another name or with other parameters takes
// the place of what is under way, which the server need not answer any more.
export function useData(name, params = {}, mark = "") {
  const [state, setState] = useState({data: null, error: null, key: ""});
  const key = name && JSON.stringify([name, params]);
  const latest = useRef({});
  if (latest.current.key !== key) {
    latest.current.stop?.abort();
    latest.current = {key, asked: 0, answered: 0, stop: new AbortController()};
  }
  useEffect(() => () => { latest.current.stop?.abort(); latest.current = {}; }, []);
  useEffect(() => {
    if (!name) return undefined;
    let timer = 0;
    const ask = () => {
      const mine = latest.current, number = ++mine.asked;
      const answered = take => value => {
        if (latest.current !== mine || number < mine.answered) return;
        mine.answered = number;
        take(value);
      };
      get(name, params, mine.stop.signal).then(
        answered(data => {
          setState({data, error: null, key});
          if (data.pending > 0 && number === mine.asked) timer = setTimeout(ask, PENDING_MS);
        }),
        answered(error => setState(old => ({...old, error: error.message, key}))),
      );
    };
    ask();
    return () => clearTimeout(timer);
  }, [key, mark]);
  return {...state, fresh: state.key === key};
}

// What every view gets: {runs, differing, pulse}.
export const Shared = createContext(null);
export const useShared = () => useContext(Shared);

const PULSE_MS = 2000;
// Folders may be called anything.
const told = run => ({...run, label: legible(run.label), group: legible(run.group)});

// Asks for the runs' marks while the page is looked at, and for the runs when one has changed.
export function useRuns() {
  const [shared, setShared] = useState({runs: null, differing: {}, pulse: {}, error: null});
  useEffect(() => {
    let seen = null, timer = 0, over = false;
    async function beat() {
      try {
        if (seen === null || JSON.stringify(await get("pulse")) !== seen) {
          const {runs, differing, pulse} = await get("runs");
          seen = JSON.stringify(pulse);
          if (!over) setShared({runs: runs.map(told), differing, pulse, error: null});
        } else if (!over) {
          setShared(old => old.error ? {...old, error: null} : old);
        }
      } catch (error) {
        if (!over) setShared(old => ({...old, error: "The server does not answer; is agent-r1 view still running?"}));
      }
      if (!over) timer = setTimeout(next, PULSE_MS);
    }
    function next() {
      if (document.visibilityState === "visible") beat();
      else timer = setTimeout(next, PULSE_MS);
    }
    beat();
    return () => { over = true; clearTimeout(timer); };
  }, []);
  return shared;
}
