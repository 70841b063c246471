"use strict";
// Everything that is shown comes from the element #data, and is put in place as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const MARKS = {
  made: "●", cached: "✓", remote: "☁", failed: "✗", running: "▶", interrupted: "■", "not reached": "○",
};
const FOLDED = 4; // this many cached steps in a row are shown as one line

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
