"use strict";
// Everything that is shown comes from the element #data, and is put in place as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const MARKS = {
  made: "●", cached: "✓", remote: "☁", failed: "✗", running: "▶", interrupted: "■", "not reached": "○",
};
const FOLDED = 4; // this many cached steps in a row are shown as one line
const MOST_ROWS = 300; // of the timeline
const MOST_BARS = 15;
const MOST_MATCHES = 200;

const byId = (id) => document.getElementById(id);

function make(tag, text, attributes) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  return made;
}

function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 60) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  const rest = `${Math.floor((whole % 3600) / 60)}:${String(whole % 60).padStart(2, "0")}`;
  return whole < 3600 ? `${rest} min` : `${Math.floor(whole / 3600)}:${rest.padStart(5, "0")} h`;
}

function bytes(value) {
  if (value === null || value === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < 4; unit++) value /= 1024;
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

const moment = (time) => new Date(time * 1000).toLocaleString();
const shorter = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// -- the steps, numbered as in the graph's links

const steps = new Map(); // by anchor
data.stages.forEach((stage, number) => {
  for (const step of stage.steps) {
    step.anchor = `s${number}-${step.op}`;
    step.took = step.began !== null && step.ended !== null ? step.ended - step.began : null;
    step.stage = stage.path;
    steps.set(step.anchor, step);
  }
});
const all = [...steps.values()];

// -- the heading

function heading() {
  const build = data.build;
  const name = build.spec.split("/").pop() || build.id;
  byId("spec").textContent = name;
  byId("outcome").textContent = build.outcome;
  byId("outcome").classList.add(build.outcome);
  const base = all.filter((step) => step.op === 1).flatMap((step) => step.key.filter(([field]) => field === "base"));
  const facts = [
    ["Spec", build.spec],
    ["Source", build.source],
    ["Began", moment(build.began)],
    ["Took", seconds(build.seconds)],
    ["Steps", `${build.made} made, ${build.cached} cached, ${build.steps} planned`],
    ["Result", build.result],
    ["Tags", build.tags.join(", ")],
    ["Base", [...new Set(base.flatMap(([, lines]) => lines))].join("\n")],
    ["Executor", build.executor],
    ["Versions", [`obuild ${build.version}`, data.qemu].filter(Boolean).join("\n")],
  ];
  for (const [term, value] of facts) {
    if (value) byId("facts").append(make("dt", term), make("dd", value));
  }
  byId("footer").textContent = `Build ${build.id}. Made by obuild ${data.made_by}.`;
}

function failure() {
  if (!data.message) return;
  byId("failure").hidden = false;
  byId("message").textContent = data.message;
  byId("hint").textContent = data.hint;
  const failed = all.find((step) => step.state === "failed");
  if (failed) {
    const link = byId("failed-step");
    link.hidden = false;
    link.href = `#${failed.anchor}`;
  }
}

function notes() {
  if (!data.notes.length) return;
  byId("notes").hidden = false;
  for (const note of data.notes.slice(0, 500)) byId("notes").querySelector("ul").append(make("li", note));
}

// -- bars

function bar(from, size, of) {
  const made = make("span", null, { class: "bar" });
  made.style.left = `${(100 * from) / of}%`;
  made.style.width = `${(100 * size) / of}%`;
  return made;
}

function row(step, number, bars) {
  const item = make("li");
  const label = `${step.stage ? `${step.stage} ` : ""}${step.op}: ${shorter(step.text, 60)}`;
  const track = make("span", null, { class: `track ${step.state}`, "aria-hidden": "true" });
  track.append(...bars);
  item.append(make("a", label, { href: `#${step.anchor}`, title: shorter(step.text, 500) }), track);
  item.append(make("span", number, { class: "number" }));
  return item;
}

function timeline() {
  const timed = all.filter((step) => step.began !== null && step.state !== "cached" && step.state !== "remote");
  const first = data.build.began;
  const last = Math.max(first + (data.build.seconds || 0), ...timed.slice(0, 10000).map((step) => step.ended || 0));
  const whole = Math.max(last - first, 0.001);
  const list = byId("timeline");
  for (const step of timed.slice(0, MOST_ROWS)) {
    const ended = step.ended === null ? last : step.ended;
    const bars = [bar(step.began - first, ended - step.began, whole)];
    const phases = step.phases.filter(([, , , took]) => took !== null);
    if (phases.length > 1) {
      bars[0].classList.add("under");
      for (const [name, subject, began, took] of phases) {
        const made = bar(began - first, took, whole);
        made.title = `${name} ${subject}: ${seconds(took)}`;
        bars.push(made);
      }
    }
    list.append(row(step, seconds(ended - step.began), bars));
  }
  if (!timed.length) list.append(make("li", "Every step was cached."));
  if (timed.length > MOST_ROWS) list.append(make("li", `… and ${timed.length - MOST_ROWS} more steps`));
}

function largest(id, value, shown) {
  const known = all.filter((step) => step.state !== "cached").concat(all); // what was made counts first
  const distinct = [...new Map(known.reverse().map((step) => [step.id || step.anchor, step])).values()];
  const found = distinct.filter((step) => value(step) > 0).sort((one, other) => value(other) - value(one));
  const list = byId(id);
  for (const step of found.slice(0, MOST_BARS)) {
    list.append(row(step, shown(value(step)), [bar(0, value(step), value(found[0]))]));
  }
  if (!found.length) list.append(make("li", "Nothing to show."));
}

// -- logs: colours as in a terminal; whatever else a program asks of a terminal is dropped

const ESCAPES = /\x1b\[([0-9;:]*)m|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?/g;
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;

// A carriage return begins the line anew: of a progress bar, only the last state is shown.
const settled = (text) => text.replace(/\r+\n/g, "\n").replace(/^.*\r(?!$)/gm, "");

const plain = (text) => settled(text.replace(ESCAPES, "")).replace(CONTROLS, "");

function restyle(style, codes) {
  const numbers = codes.split(/[;:]/).map(Number);
  for (let at = 0; at < numbers.length; at++) {
    const code = numbers[at];
    if (code === 0) style = {};
    else if (code === 1) style = { ...style, b: "b" };
    else if (code === 2) style = { ...style, b: "d" };
    else if (code === 3) style = { ...style, i: "i" };
    else if (code === 4) style = { ...style, u: "u" };
    else if (code === 22) style = { ...style, b: "" };
    else if (code === 23) style = { ...style, i: "" };
    else if (code === 24) style = { ...style, u: "" };
    else if (code === 38 || code === 48) {
      const name = code === 38 ? "f" : "g";
      if (numbers[at + 1] === 5) style = { ...style, [name]: numbers[at + 2] < 16 ? name + (numbers[at + 2] % 8) : "" };
      at += numbers[at + 1] === 5 ? 2 : 4;
    } else if (code === 39) style = { ...style, f: "" };
    else if (code === 49) style = { ...style, g: "" };
    else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) style = { ...style, f: `f${code % 10}` };
    else if ((code >= 40 && code <= 47) || (code >= 100 && code <= 107)) style = { ...style, g: `g${code % 10}` };
  }
  return style;
}

function coloured(text) {
  const made = document.createDocumentFragment();
  let style = {};
  let from = 0;
  text = settled(text);
  const put = (piece) => {
    const shown = piece.replace(CONTROLS, "");
    const classes = Object.values(style).filter(Boolean).join(" ");
    if (shown) made.append(classes ? make("span", shown, { class: classes }) : shown);
  };
  for (const found of text.matchAll(ESCAPES)) {
    put(text.slice(from, found.index));
    if (found[1] !== undefined) style = restyle(style, found[1]);
    from = found.index + found[0].length;
  }
  put(text.slice(from));
  return made;
}

// -- the list of steps; what is inside one is made when it is opened

function terms(pairs) {
  const list = make("dl");
  for (const [term, value] of pairs) list.append(make("dt", term), make("dd", value));
  return list;
}

function inside(step) {
  const inner = make("div", null, { class: "inner" });
  const facts = [
    ["Id", step.id],
    ["Size", bytes(step.size)],
    ["Copies from", step.origin],
    ["Compared with", step.nearest],
  ];
  inner.append(terms(facts.filter(([, value]) => value)));
  if (step.why.length) {
    const list = make("ul");
    for (const reason of step.why) list.append(make("li", reason));
    inner.append(make("h4", "Why it was made"), list);
  }
  if (step.phases.length) {
    const phases = step.phases.map(([name, subject, , took]) => [`${name} ${subject}`.trim(), seconds(took) || "…"]);
    inner.append(make("h4", "Phases"), terms(phases));
  }
  if (step.key.length) {
    inner.append(make("h4", "Key"), terms(step.key.map(([name, lines]) => [name, lines.join("\n")])));
  }
  inner.append(make("h4", "Log"));
  if (step.log === null) {
    inner.append(make("p", step.state === "not reached" ? "The step was not reached." : "The log is not kept."));
  } else {
    const log = make("pre", null, { tabindex: "0", role: "region", "aria-label": `log of step ${step.op}` });
    log.append(step.log.size ? coloured(step.log.text) : "(nothing was printed)");
    inner.append(log);
  }
  return inner;
}

function fold(summary, attributes, fill) {
  const made = make("details", null, attributes);
  made.append(summary);
  const filled = () => {
    if (made.childElementCount === 1) made.append(fill());
  };
  made.addEventListener("toggle", () => made.open && filled());
  made.fill = filled;
  return made;
}

function shownStep(step) {
  const summary = make("summary");
  if (step.took) summary.append(make("span", seconds(step.took), { class: "took" }));
  summary.append(make("span", `${MARKS[step.state] || "○"} ${step.state}`, { class: step.state }));
  summary.append(` ${step.op} `, make("span", shorter(step.text, 300), { class: "op" }));
  return fold(summary, { id: step.anchor }, () => inside(step));
}

function shownRun(run) {
  const summary = make("summary", null);
  summary.append(make("span", `✓ ${run.length} steps cached`, { class: "cached" }));
  summary.append(` ${run[0].op} to ${run[run.length - 1].op}`);
  const made = fold(summary, { class: "run" }, () => {
    const inner = make("div", null, { class: "inner" });
    inner.append(...run.map(shownStep));
    return inner;
  });
  for (const step of run) runs.set(step.anchor, made);
  return made;
}

const runs = new Map(); // the fold of a step that is in one

function stages() {
  for (const stage of data.stages) {
    const section = make("section");
    section.append(make("h3", stage.path ? `Stage ${stage.path}` : "The last stage"));
    let run = [];
    const flush = () => {
      section.append(...(run.length >= FOLDED ? [shownRun(run)] : run.map(shownStep)));
      run = [];
    };
    for (const step of stage.steps) {
      if (step.state === "cached") {
        run.push(step);
      } else {
        flush();
        section.append(shownStep(step));
      }
    }
    flush();
    byId("stages").append(section);
  }
}

function reveal(anchor) {
  const around = runs.get(anchor);
  if (around) {
    around.fill();
    around.open = true;
  }
  const found = byId(anchor);
  if (!found || !steps.has(anchor)) return null;
  found.fill();
  found.open = true;
  found.querySelector("summary").focus();
  found.scrollIntoView({ block: "start" });
  return found;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#s']");
  if (!link) return;
  const anchor = link.getAttribute("href").slice(1);
  if (!steps.has(anchor)) return;
  event.preventDefault();
  history.replaceState(null, "", `#${anchor}`);
  const found = reveal(anchor);
  if (found && link.dataset.find) highlight(found.querySelector("pre"), link.dataset.find);
});

// -- search

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

heading();
failure();
notes();
timeline();
largest("longest", (step) => step.took || 0, seconds);
largest("largest", (step) => step.size || 0, bytes);
stages();
if (location.hash) reveal(location.hash.slice(1));
else {
  const failed = all.find((step) => step.state === "failed");
  if (failed) byId(failed.anchor).open = true;
}
document.documentElement.dataset.ready = "yes";
