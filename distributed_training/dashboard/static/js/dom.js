// Makes elements. Data enters as text nodes and attribute values only, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

function fill(node, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child != null && child !== false) node.append(child);
  return node;
}

/** An HTML element: h("p", {class: "x", onclick: f}, "text", otherNode). */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

/** An SVG element. */
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

/** Sets a node's text only where it changed, so that nothing is laid out again for nothing. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A plain table: columns are [label, cell of a row, "num" or nothing]; the caption is read aloud. */
export function table(caption, columns, rows) {
  return h("table", null,
    h("caption", { class: "unseen" }, caption),
    h("thead", null, h("tr", null, columns.map(([label, , kind]) => h("th", { scope: "col", class: kind }, label)))),
    h("tbody", null, rows.map((row) => h("tr", null, columns.map(([, cell, kind], place) =>
      h(place ? "td" : "th", { class: kind, scope: place ? null : "row" }, cell(row)))))));
}

/** Fills a <details> with what `make` gives when it is opened, and again when `refresh` is called while it is open. */
export function lazy(details, make) {
  const box = h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": details.textContent });
  details.append(box);
  const refresh = () => { if (details.open) box.replaceChildren(make()); };
  details.addEventListener("toggle", refresh);
  return refresh;
}
