// Who sent what to whom: a row for each sender, a column for each slice, headed by the slice's reducer and its end.

import { colour, drawing, legend } from "./canvas.js";
import { $, h, lazy, table } from "./dom.js";
import { int, plural, text } from "./format.js";
import { on, state } from "./store.js";

const STATES = {
  counted: ["--counted", "counted"], backed_up: ["--backed", "counted from a backup"], lost: ["--lost", "lost"],
};
const CELLS = { own: "its own slice", in: "arrived", out: "did not arrive", null: "nothing seen" };

let slices = [];
let senders = [];
let cells = [];
const cursor = { row: 0, column: 0, on: false };
const small = document.createElement("canvas");
let size = 1;
const big = () => size >= 13;
const left = () => (senders.length <= 64 ? 34 : 6);
const top = () => (slices.length <= 24 ? 32 : 14);
const column = (place) => left() + Math.round(place * size);
const high = () => (senders.length <= 24 ? Math.max(20, Math.min(30, size)) : Math.max(2, Math.min(size, 12)));
const row = (place) => top() + Math.round(place * high());

function paint(context) {
  slices.forEach(({ reducer, state: end }, place) => head(context, reducer, end, column(place), column(place + 1)));
  context.textAlign = "right";
  context.fillStyle = colour("--quiet");
  const every = Math.ceil(11 / high());
  senders.forEach((uid, place) => {
    if (left() < 10 || place % every) return;
    context.fillText(String(uid), left() - 6, row(place) + high() / 2);
  });
  if (big()) senders.forEach((_, place) => slices.forEach((__, i) => cell(context, place, i)));
  if (!big() && senders.length) heat(context);
  if (!cursor.on || !senders.length) return;
  context.strokeStyle = colour("--ink");
  context.lineWidth = 2;
  context.strokeRect(column(cursor.column), row(cursor.row), Math.max(4, size), Math.max(4, high()));
  context.lineWidth = 1;
}

/** A slice's reducer, and a strip in the tone and shape of how the slice ended. */
function head(context, reducer, end, from, to) {
  context.fillStyle = colour(STATES[end]?.[0] ?? "--quiet");
  const low = end === "lost" ? 2 : end === "backed_up" ? 4 : 7;
  context.fillRect(from, top() - 2 - low, Math.max(1, to - from - (big() ? 2 : 0)), low);
  if (top() < 20) return;
  context.fillStyle = colour("--quiet");
  context.textAlign = "center";
  context.fillText(String(reducer ?? "?"), (from + to) / 2, 9);
}

/** Of a lost slice nothing counts, whoever sent what. */
function tone(kind, end) {
  if (kind === "out") return "--missing";
  return kind == null && end !== "lost" ? "--void" : STATES[end]?.[0] ?? "--quiet";
}

function sign(kind, end) {
  if (end === "lost") return "–";
  return { out: "×", own: "•" }[kind] ?? (kind && end === "backed_up" ? "↺" : "");
}

/** One large cell, with the sign of what its tone says. */
function cell(context, place, i) {
  const kind = cells[place]?.[i];
  const { state: end } = slices[i];
  const [x, y, wide, tall] = [column(i), row(place), column(i + 1) - column(i), row(place + 1) - row(place)];
  context.fillStyle = colour(tone(kind, end));
  context.fillRect(x, y, wide - 2, tall - 1);
  context.fillStyle = colour(kind === "out" ? "--on-missing" : "--on-phase");
  context.textAlign = "center";
  context.fillText(sign(kind, end), x + wide / 2 - 1, y + tall / 2);
}

/** All small cells at once: a picture of one pixel a cell, enlarged. */
function heat(context) {
  const image = new ImageData(slices.length, senders.length);
  const bytes = new Map();
  senders.forEach((_, place) => slices.forEach(({ state: end }, i) => {
    const name = tone(cells[place]?.[i], end);
    if (!bytes.has(name)) bytes.set(name, [...colour(name).match(/\d+/g).slice(0, 3).map(Number), 255]);
    image.data.set(bytes.get(name), 4 * (place * slices.length + i));
  }));
  small.width = slices.length;
  small.height = senders.length;
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, left(), top(), column(slices.length) - left(), row(senders.length) - top());
}

function words(place, i) {
  const slice = slices[i];
  if (senders[place] == null || !slice) return "";
  const kind = cells[place]?.[i] ?? null;
  if (slice.state === "lost") return `slice ${slice.index}, to uid ${slice.reducer ?? "?"}: lost, nothing of it counts`;
  const end = STATES[slice.state]?.[1] ?? "not heard of";
  const way = `uid ${senders[place]}, slice ${slice.index}, to uid ${slice.reducer ?? "?"}`;
  return `${way}: ${CELLS[kind] ?? kind}; the slice was ${end}`;
}

const picture = drawing($("matrix"), {
  label: "Senders by slices",
  height(wide) {
    size = Math.min(72, (wide - left() - 2) / Math.max(1, slices.length));
    return row(senders.length) + 4;
  },
  leastWidth: () => left() + slices.length * 2,
  paint,
  at: (x, y) => words(Math.floor((y - top()) / high()), Math.floor((x - left()) / size)),
  move(key) {
    if (!senders.length) return null;
    const [down, across] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[key];
    cursor.on = true;
    cursor.row = Math.min(senders.length - 1, Math.max(0, cursor.row + down));
    cursor.column = Math.min(slices.length - 1, Math.max(0, cursor.column + across));
    return words(cursor.row, cursor.column);
  },
});

$("matrix").prepend(legend([
  ["--counted", "counted"], ["--backed", "↺ from a backup"], ["--lost", "– slice lost"],
  ["--missing", "× did not arrive"], ["--void", "nothing seen"],
], "• its own slice", "above: the reducer's uid, and a strip: how its slice ended"));

const SLICES = [
  ["Slice", (one) => int(one.index), "num"],
  ["Reducer", (one) => `uid ${one.reducer ?? "?"}`],
  ["End", (one) => STATES[one.state]?.[1] ?? "not known"],
];
const missing = (i) => cells[i].flatMap((kind, at) => (kind === "out" ? [slices[at]?.index] : []));
const SENDERS = [
  ["Sender", (i) => `uid ${senders[i]}`],
  ["Arrived", (i) => int(cells[i].filter((kind) => kind === "in" || kind === "own").length), "num"],
  ["Did not arrive, by slice", (i) => text(missing(i).join(" "))],
];
const drawTable = lazy($("matrix-table"), () =>
  h("div", null, table("Slices", SLICES, slices), table("Senders", SENDERS, senders.map((_, i) => i))));

function sentence() {
  if (!slices.length) return "Nothing is known of this round's slices.";
  const ended = (end) => slices.filter((one) => one.state === end).length;
  const flat = cells.flat();
  const came = flat.filter((kind) => kind === "in" || kind === "own").length;
  const gone = flat.filter((kind) => kind === "out").length;
  const pieces = plural(came + gone, "piece");
  const known = flat.length ? ` ${int(came)} of ${pieces} arrived.` : " Nobody told who sent what.";
  const others = `${int(ended("backed_up"))} from a backup, ${int(ended("lost"))} lost`;
  return `${int(ended("counted"))} of ${plural(slices.length, "slice")} counted, ${others}.${known}`;
}

on("round", () => {
  slices = state.round?.slices ?? [];
  senders = state.round?.matrix?.senders ?? [];
  cells = state.round?.matrix?.cells ?? [];
  cursor.on = false;
  picture.rest(sentence());
  picture.draw();
  drawTable();
});
