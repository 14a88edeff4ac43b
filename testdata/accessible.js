// What a person who sees little, or listens, needs of whatever is shown. Returns one line for each fault.
const faults = [];
const seen = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !e.closest(".unseen, .skip, [aria-hidden=true]");
const name = (e) => `${e.localName}.${e.className?.baseVal ?? e.className} "${e.textContent.trim().slice(0, 30)}"`;

// Text has a contrast of at least 4.5 to 1 with what stands behind it.
const rgba = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
const luminance = (c) => c.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3])).concat(1);
function ground(e) {
  const own = rgba(getComputedStyle(e).backgroundColor);
  if (own[3] === 1) return own;
  return over(own, e.parentElement ? ground(e.parentElement) : [255, 255, 255, 1]);
}
for (const e of document.querySelectorAll("body *")) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !seen(e)) continue;
  let opacity = 1;
  for (let p = e; p; p = p.parentElement) opacity *= getComputedStyle(p).opacity;
  const under = ground(e), colour = rgba(getComputedStyle(e).color);
  const [a, b] = [luminance(over([...colour.slice(0, 3), colour[3] * opacity], under)), luminance(under)].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5) faults.push(`${name(e)} has a contrast of ${contrast.toFixed(2)}`);
}

// Fields have labels, ids are unique, references lead somewhere, roles have what belongs to them.
for (const e of document.querySelectorAll("input, select, textarea")) {
  if (seen(e) && !e.labels?.length && !e.getAttribute("aria-label")) faults.push(`${name(e)} has no label`);
}
const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
for (const id of new Set(ids)) if (id && ids.filter((i) => i === id).length > 1) faults.push(`the id ${id} is there twice`);
for (const e of document.querySelectorAll("[aria-labelledby], [for]")) {
  for (const id of [e.getAttribute("aria-labelledby"), e.getAttribute("for")].join(" ").split(/\s+/)) {
    if (id && !document.getElementById(id)) faults.push(`${name(e)} refers to ${id}, which is not there`);
  }
}
const inside = { row: "[role=rowgroup], [role=table]", cell: "[role=row]", rowheader: "[role=row]", columnheader: "[role=row]", rowgroup: "[role=table]" };
for (const e of document.querySelectorAll("[role]")) {
  const parent = inside[e.getAttribute("role")];
  if (parent && !e.parentElement.matches(parent)) faults.push(`${name(e)} is a ${e.getAttribute("role")} outside of a ${parent}`);
}
for (const e of document.querySelectorAll("ul > *, ol > *")) if (e.localName !== "li") faults.push(`${name(e)} is in a list and no item of it`);
for (const e of document.querySelectorAll("li")) if (!e.parentElement.matches("ul, ol")) faults.push(`${name(e)} is an item of no list`);
for (const e of document.querySelectorAll("a a, a button, button a, button button, summary a, summary button, label label")) faults.push(`${name(e)} stands in another control`);

// One heading begins the view, and no level is left out.
const levels = [...document.querySelectorAll("h1, h2, h3, h4")].filter(seen).map((e) => Number(e.localName[1]));
if (levels.filter((l) => l === 1).length !== 1) faults.push(`there are ${levels.filter((l) => l === 1).length} first headings`);
levels.forEach((l, i) => { if (l > (levels[i - 1] ?? 0) + 1) faults.push(`a heading of level ${l} follows one of level ${levels[i - 1] ?? 0}`); });

if (document.documentElement.scrollWidth > innerWidth) faults.push(`the page is ${document.documentElement.scrollWidth} pixels wide on a screen of ${innerWidth}`);
return [...new Set(faults)].join("\n");
