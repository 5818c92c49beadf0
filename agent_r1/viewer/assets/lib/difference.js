// Two texts word by word: the longest common subsequence, as diff tools find it.
const MOST_WORDS = 4000;

// [["same" | "left" | "right", text]]
export function difference(left, right) {
  const a = words(left), b = words(right);
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const middle = between(a.slice(head, a.length - tail), b.slice(head, b.length - tail));
  return joined([...a.slice(0, head).map(same), ...middle, ...a.slice(a.length - tail).map(same)]);
}

const words = text => text.match(/\s+|\w+|[^\s\w]/gu) || [];
const same = word => ["same", word];

function between(a, b) {
  if (a.length > MOST_WORDS || b.length > MOST_WORDS || !a.length || !b.length) {
    return [...a.map(word => ["left", word]), ...b.map(word => ["right", word])];
  }
  const width = b.length + 1;
  const longest = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] = a[i] === b[j] ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const parts = [];
  let i = 0, j = 0;
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) { parts.push(same(a[i])); i++; j++; }
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) parts.push(["left", a[i++]]);
    else parts.push(["right", b[j++]]);
  }
  return [...parts, ...a.slice(i).map(word => ["left", word]), ...b.slice(j).map(word => ["right", word])];
}

function joined(parts) {
  const made = [];
  for (const [kind, text] of parts) {
    if (made.at(-1)?.[0] === kind) made.at(-1)[1] += text;
    else made.push([kind, text]);
  }
  return made;
}
