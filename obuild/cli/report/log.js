"use strict";
// Logs as HTML elements: colours as in a terminal. Whatever else a program asks of a terminal is dropped.

const ESCAPES = /\x1b\[([0-9;:]*)m|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?/g;
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
