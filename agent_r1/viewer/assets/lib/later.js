// Views whose modules are asked for when they are needed, and not before the page is painted.
import {html, useState} from "./core.js";
import {Problem} from "./parts.js";

// A component in the place of the one that a module calls `name`; `load()` fetches it beforehand.
export function later(fetched, name) {
  let asked = null, found = null, error = null;
  const load = () => asked ||= fetched().then(module => { found = module[name]; }, problem => { asked = null; error = problem.message; });
  function Later(props) {
    const [, draw] = useState(0);
    if (found) return html`<${found} ...${props} />`;
    load().then(() => draw(count => count + 1));
    return html`<${Problem} error=${error} />`;
  }
  return Object.assign(Later, {load});
}
