// A table sorted by its header buttons that redraws only the rows that changed: hundreds of rows stay smooth.

import { h } from "./dom.js";
import { text } from "./format.js";

/** A column of numbers: `show` writes them. */
export const number = (key, label, show, title) =>
  ({ key, label, title, num: true, value: (row) => row[key], cell: (row) => show(row[key]) });

/** A column of words. */
export const words = (key, label, show, title) =>
  ({ key, label, title, value: (row) => row[key], cell: (row) => show(row[key]) });

/** A column of long text, cut to one line; all of it is its title. */
export const note = (key, label) =>
  words(key, label, (all) => h("span", { class: "note", title: all || null }, text(all)));

/**
 * A sortable table in `host`. columns: [{key, label, title, num, upward (smallest first), value(row) to sort by,
 * cell(row) -> node or text}].
 * `by` is the key sorted by at first ("-key": largest first). update(rows, none) takes rows with a unique `id`; `none`
 * is said in place of `empty`.
 */
export function grid(host, { caption, columns, by, empty }) {
  let key = by.replace("-", "");
  let down = by.startsWith("-");
  let rows = [];
  const drawn = new Map();
  const heads = new Map();
  const body = h("tbody");
  const head = h("tr", null, columns.map((column) => {
    const cell = h("th", { scope: "col", class: column.num && "num", title: column.title },
      h("button", { type: "button", class: "sort", onclick: () => { sortBy(column); } }, column.label));
    heads.set(column.key, cell);
    return cell;
  }));
  const nothing = h("p", { class: "quiet" }, empty);
  const label = `${caption}; up and down go from row to row`;
  const box = h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": label },
    h("table", { class: "grid" }, h("caption", { class: "unseen" }, caption), h("thead", null, head), body));
  host.append(box, nothing);
  body.addEventListener("keydown", walk);

  function sortBy(column) {
    down = column.key === key ? !down : Boolean(column.num && !column.upward);
    key = column.key;
    arrange();
  }
  function make(row) {
    const signature = JSON.stringify(row);
    const old = drawn.get(row.id);
    if (old?.signature === signature) return old.line;
    const line = h("tr", null, columns.map((column, place) => {
      const first = place === 0;
      return h(first ? "th" : "td", { class: column.num && "num", scope: first && "row" }, column.cell(row));
    }));
    old?.line.replaceWith(line);
    drawn.set(row.id, { signature, line });
    return line;
  }
  function compare(a, b) {
    if (a == null || b == null) return (a == null) - (b == null);
    const numbers = typeof a === "number" && typeof b === "number";
    const order = numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return down ? -order : order;
  }
  function arrange() {
    const sorted = down ? "descending" : "ascending";
    for (const [name, cell] of heads) cell.setAttribute("aria-sort", name === key ? sorted : "none");
    const column = columns.find((one) => one.key === key);
    const held = focusedRow();
    const lines = [...rows].sort((a, b) => compare(column.value(a), column.value(b))).map(make);
    const now = [...body.children];
    if (now.length !== lines.length || now.some((line, place) => line !== lines[place])) body.replaceChildren(...lines);
    const lost = held != null && !body.contains(document.activeElement);
    if (lost) drawn.get(held)?.line.querySelector("button")?.focus({ preventScroll: true });
    rove(lines.find((line) => line.contains(document.activeElement)) ?? lines[0]);
    box.hidden = !lines.length;
    nothing.hidden = lines.length > 0;
  }
  function focusedRow() {
    const line = body.contains(document.activeElement) && document.activeElement.closest("tr");
    return line ? [...drawn].find(([, one]) => one.line === line)?.[0] : null;
  }
  /** One row's button is reached by Tab, the others from it by the arrow keys: nobody tabs through hundreds of rows. */
  function rove(line) {
    for (const button of body.querySelectorAll("button")) button.tabIndex = line?.contains(button) ? 0 : -1;
  }
  /** Up and down go from one row's button to the next. */
  function walk(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = step && event.target.closest("tr")?.[step]?.querySelector("button");
    if (!next) return;
    event.preventDefault();
    next.focus();
    rove(next.closest("tr"));
  }
  return {
    update(now, none = empty) {
      rows = now;
      nothing.textContent = none;
      const ids = new Set(rows.map((row) => row.id));
      for (const id of drawn.keys()) if (!ids.has(id)) drawn.delete(id);
      arrange();
    },
  };
}
