"use strict";
// The timeline, and what took longest and most.

const MOST_ROWS = 300; // of the timeline
const MOST_BARS = 15;

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
        if (name !== "running") made.classList.add("beside");
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
