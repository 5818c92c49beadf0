// Code with colours. highlight.js says what each stretch is; what is drawn are text nodes only.
import hljs from "../vendor/highlight.js";
import json from "../vendor/highlight-json.js";
import python from "../vendor/highlight-python.js";
import {html} from "./core.js";
import {named} from "./text.js";

// Gathers what highlight.js finds as a tree of {scope, children}, where it would write HTML.
class Tree {
  constructor() {
    this.root = {scope: "", children: []};
    this.stack = [this.root];
  }
  addText(text) { if (text) this.stack[this.stack.length - 1].children.push(text); }
  startScope(scope) {
    const node = {scope, children: []};
    this.stack[this.stack.length - 1].children.push(node);
    this.stack.push(node);
  }
  endScope() { this.stack.pop(); }
  openNode(scope) { this.startScope(scope); }
  closeNode() { this.endScope(); }
  __addSublanguage(tree, name) { this.stack[this.stack.length - 1].children.push({scope: name || "", children: tree.root.children}); }
  finalize() {}
  toHTML() { return ""; }
}

hljs.configure({__emitter: Tree});
hljs.registerLanguage("python", python);
hljs.registerLanguage("json", json);

const LONGEST = 50000;

export function coloured(text, language) {
  if (text.length > LONGEST || !hljs.getLanguage(language)) return named(text);
  return drawn(hljs.highlight(text, {language, ignoreIllegals: true})._emitter.root.children);
}

function drawn(children) {
  return children.map(child => typeof child === "string"
    ? named(child)
    : html`<span class=${"hl-" + child.scope.replace(/[^a-z]/g, "-")}>${drawn(child.children)}</span>`);
}
