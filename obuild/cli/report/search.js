"use strict";
// The search in steps and logs.

const MOST_MATCHES = 200;

function highlight(log, wanted) {
  if (!log) return;
  const walker = document.createTreeWalker(log, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const at = node.data.toLowerCase().indexOf(wanted.toLowerCase());
    if (at < 0) continue;
    const range = document.createRange();
    range.setStart(node, at);
    range.setEnd(node, Math.min(node.length, at + wanted.length));
    const mark = make("mark");
    range.surroundContents(mark);
    mark.scrollIntoView({ block: "center" });
    return;
  }
}

function* matches(wanted) {
  for (const step of all) {
    if (step.text.toLowerCase().includes(wanted)) yield [step, shorter(step.text, 200)];
    if (step.log === null) continue;
    step.plain = step.plain === undefined ? plain(step.log.text) : step.plain;
    step.lower = step.lower === undefined ? step.plain.toLowerCase() : step.lower;
    for (let at = step.lower.indexOf(wanted); at >= 0; ) {
      const start = step.plain.lastIndexOf("\n", at) + 1;
      let end = step.plain.indexOf("\n", at);
      if (end < 0) end = step.plain.length;
      const from = Math.max(start, at - 80);
      yield [step, step.plain.slice(from, Math.min(end, at + wanted.length + 120))];
      at = step.lower.indexOf(wanted, end);
    }
  }
}

function search() {
  const wanted = byId("search").value;
  const list = byId("matches");
  list.replaceChildren();
  list.hidden = !wanted;
  byId("found").textContent = "";
  byId("found").dataset.searched = wanted;
  if (!wanted) return;
  let count = 0;
  for (const [step, line] of matches(wanted.toLowerCase())) {
    if (count === MOST_MATCHES) {
      byId("found").textContent = `The first ${MOST_MATCHES} matches:`;
      return;
    }
    count += 1;
    const item = make("li");
    const where = `${step.stage ? `${step.stage} ` : ""}${step.op}: `;
    item.append(make("a", where + line, { href: `#${step.anchor}`, "data-find": wanted }));
    list.append(item);
  }
  byId("found").textContent = count === 1 ? "1 match" : `${count || "No"} matches`;
}

let soon = 0;
byId("search").addEventListener("input", () => {
  clearTimeout(soon);
  soon = setTimeout(search, 150);
});
