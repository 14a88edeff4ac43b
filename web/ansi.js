// The colours of a terminal, in an output. What chooses them becomes a class;
// all else stays text, and controls of any other kind are made visible.

import { visible } from "./dom.js";

// painter returns a function that makes nodes of a text, piece by piece: a
// colour lasts until another is chosen, and a sequence may be cut in two.
export function painter() {
  let style = { colour: null, bold: false };
  let rest = "";
  return (text) => {
    const whole = rest + text;
    const [, cut] = /(\x1b(?:\[[\d;]{0,40})?)$/.exec(whole) ?? [null, ""];
    rest = cut;
    const parts = whole.slice(0, whole.length - cut.length).split(/\x1b\[([\d;]*)m/);
    return parts.flatMap((part, i) => {
      if (i % 2) style = chosen(style, part.split(";").map(Number));
      return i % 2 || !part ? [] : [node(style, part)];
    });
  };
}

function node({ colour, bold }, text) {
  const shown = visible(text);
  const name = [colour !== null && `ansi${colour}`, bold && "bold"].filter(Boolean).join(" ");
  if (!name) return document.createTextNode(shown);
  const span = document.createElement("span");
  span.className = name;
  span.textContent = shown;
  return span;
}

// chosen is the style after codes: eight colours, light or not, and bold. A
// ground would make a text hard to read, and is left out.
function chosen(style, codes) {
  const next = { ...style };
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i];
    if (code === 0) Object.assign(next, { colour: null, bold: false });
    else if (code === 1) next.bold = true;
    else if (code === 22) next.bold = false;
    else if (code === 39) next.colour = null;
    else if (code >= 30 && code <= 37) next.colour = code - 30;
    else if (code >= 90 && code <= 97) next.colour = code - 90;
    else if (code === 38 || code === 48) {
      if (code === 38 && codes[i + 1] === 5 && codes[i + 2] < 16) next.colour = codes[i + 2] % 8;
      i += codes[i + 1] === 5 ? 2 : 4;
    }
  }
  return next;
}

// plain takes the choice of colours out of a text.
export const plain = (text) => text.replace(/\x1b\[[\d;]*m/g, "");
