// The round as a timeline: a row for each node, its phases as bars told apart by tone, place and letter.

import { colour, drawing, legend } from "./canvas.js";
import { $, lazy, table } from "./dom.js";
import { fixed, plural, seconds, text } from "./format.js";
import { on, state } from "./store.js";

const PHASES = ["train", "commit", "average", "map", "settle", "audit"];
const tone = (phase) => colour(PHASES.includes(phase) ? `--${phase}` : "--quiet");
const STALL_S = 0.5; // shorter ones are the machine breathing
const ORDER = { owner: 0, validator: 1, miner: 2 };

let rows = [];
let end = 1;
let cursor = 0;
const rowHeight = () => (rows.length <= 20 ? 20 : rows.length <= 60 ? 12 : Math.max(3, Math.floor(640 / rows.length)));
const TOP = 18;
const gutter = () => (rowHeight() >= 12 ? 88 : 4);
const until = (phase) => phase.end ?? end;

function scale(wide) {
  const left = gutter();
  return (at) => left + (at / end) * (wide - left - 4);
}

function ticks() {
  const step = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600, 7200].find((one) => end / one <= 7) ?? end / 5;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => i * step);
}

function paint(context, wide) {
  const x = scale(wide);
  const high = rowHeight();
  const bottom = TOP + rows.length * high;
  context.fillStyle = colour("--quiet");
  context.strokeStyle = colour("--hair");
  context.textAlign = "center";
  for (const at of ticks()) {
    context.fillText(String(at), Math.min(x(at), wide - 8), 8);
    context.beginPath(); context.moveTo(x(at), TOP - 3); context.lineTo(x(at), bottom); context.stroke();
  }
  const pad = high >= 12 ? 3 : high > 4 ? 1 : 0.5;
  rows.forEach((row, i) => {
    const y = TOP + i * high;
    if (high >= 12) {
      context.textAlign = "left";
      context.fillStyle = colour(document.activeElement?.closest("#timeline") && i === cursor ? "--ink" : "--quiet");
      context.fillText(text(row.name).slice(0, 14), 0, y + high / 2);
    }
    for (const phase of row.phases) bar(context, phase, x(phase.start), x(until(phase)), y + pad, high - 2 * pad);
    if (row.stall_s >= STALL_S) mark(context, x(row.phases.find((one) => one.phase === "train")?.start ?? 0), y, high);
  });
}

function bar(context, phase, from, to, y, high) {
  const wide = Math.max(1, to - from - 1);
  context.fillStyle = tone(phase.phase);
  context.globalAlpha = phase.end == null ? 0.5 : 1;
  context.fillRect(from, y, wide, high);
  context.globalAlpha = 1;
  if (high < 10 || wide < 22) return;
  const name = phase.phase ?? "";
  context.fillStyle = colour("--on-phase");
  context.textAlign = "left";
  const shown = context.measureText(name).width + 8 < wide ? name : name.slice(0, 1);
  context.fillText(shown, from + 4, y + high / 2 + 0.5);
}

/** A notch at the start of the bar: this node's machine stood still for a while. */
function mark(context, x, y, high) {
  context.fillStyle = colour("--ink");
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x + 6, y);
  context.lineTo(x, y + Math.min(6, high));
  context.fill();
}

const span = (phase) => `${phase.phase} ${fixed(phase.start, 1)}–${phase.end == null ? "now" : fixed(phase.end, 1)}`;

/** What a node did, or with a time what it did then. */
function words(row, at) {
  const then = row.phases.filter((one) => at == null || (at >= one.start && at <= until(one)));
  const stall = row.stall_s >= STALL_S ? `; its machine stood still for ${seconds(row.stall_s)}` : "";
  return `${row.name}: ${then.map(span).join(", ") || "nothing seen"}${stall}`;
}

let width = 0;
const picture = drawing($("timeline"), {
  label: "Phases of the round by node",
  height: () => TOP + rows.length * rowHeight() + 2,
  paint: (context, wide) => { width = wide; paint(context, wide); },
  at(x, y) {
    const row = rows[Math.floor((y - TOP) / rowHeight())];
    return row ? words(row, ((x - gutter()) / (width - gutter() - 4)) * end) : "";
  },
  move(key) {
    if (!rows.length || (key !== "ArrowDown" && key !== "ArrowUp")) return null;
    cursor = (cursor + (key === "ArrowDown" ? 1 : rows.length - 1)) % rows.length;
    return words(rows[cursor]);
  },
});
$("timeline").prepend(legend(PHASES.map((phase) => [`--${phase}`, phase]), "◤ stood still"));

const drawTable = lazy($("timeline-table"), () => table("Phases by node, seconds from the round's first event", [
  ["Node", (row) => text(row.name)], ...PHASES.map((phase) => [phase, (row) => {
    const one = row.phases.find((each) => each.phase === phase);
    return one ? `${fixed(one.start, 1)} – ${one.end == null ? "now" : fixed(one.end, 1)}` : "–";
  }, "num"]), ["Stood still", (row) => seconds(row.stall_s), "num"],
], rows));

on("round", () => {
  const place = (row) => (ORDER[row.role] ?? 3) * 1e6 + (row.uid ?? 0);
  rows = [...(state.round?.timeline ?? [])].sort((a, b) => place(a) - place(b));
  end = Math.max(1, ...rows.flatMap((row) => row.phases.map((phase) => Math.max(phase.start, phase.end ?? 0))));
  cursor = Math.min(cursor, Math.max(0, rows.length - 1));
  picture.rest(!rows.length ? "No node has written its phases of this round."
    : `${plural(rows.length, "node")} in ${seconds(end)}. Point at a bar, or use the arrow keys.`);
  picture.draw();
  drawTable();
});
