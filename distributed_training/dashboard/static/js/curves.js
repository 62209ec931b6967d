// Loss beside the baselines, tokens and participation by round; a click on any of them shows that round below.

import { colour } from "./canvas.js";
import { $, h, lazy, say, table } from "./dom.js";
import { compact, fixed, int, mean, plural, seconds, text } from "./format.js";
import { lineChart } from "./lines.js";
import { on, showRound, state } from "./store.js";

let span = Infinity; // newest rounds shown
const round = (index) => (index < 0 ? "before round 0" : `round ${int(index)}`);
const common = {
  x: round,
  tick: (at) => (at < 0 ? "start" : int(at)),
  marked: () => state.shown,
  chosen: (index) => { if (index >= 0) showRound(index); },
  xRange: (u, min, max) => (min === max ? [min - 1, max + 1] : [min, max]),
};
const wholeBars = { xRange: (u, min, max) => [min - 0.5, max + 0.5] };

/** A small cross on the axis for every round that was not applied. */
function discarded(u, ctx) {
  const { index, applied } = state.run.rounds;
  const bottom = u.bbox.top + u.bbox.height - 6 * devicePixelRatio;
  const arm = 3 * devicePixelRatio;
  ctx.strokeStyle = colour("--lost");
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.beginPath();
  index.forEach((at, i) => {
    if (applied[i] !== false || at < u.scales.x.min || at > u.scales.x.max) return;
    const x = u.valToPos(at, "x", true);
    ctx.moveTo(x - arm, bottom - arm); ctx.lineTo(x + arm, bottom + arm);
    ctx.moveTo(x + arm, bottom - arm); ctx.lineTo(x - arm, bottom + arm);
  });
  ctx.stroke();
}

const loss = lineChart($("loss-chart"), {
  ...common, height: 330, y: (v) => fixed(v, 2), over: discarded,
  label: "Loss by round; the sentence above and the table below say the same",
  series: [
    { name: "the run", tone: "--run", width: 2.4, value: (v) => fixed(v) },
    { name: "while training", tone: "--train-loss", width: 1, dash: [2, 3], value: (v) => fixed(v) },
    { name: "one machine, all the data", tone: "--union", dash: [7, 4], value: (v) => fixed(v) },
    { name: "alone, mean", tone: "--solo", dash: [10, 3, 2, 3], value: (v) => fixed(v) },
    { silent: true, value: () => "" }, { silent: true, value: () => "" },
  ],
  bands: [[5, 6, "--solo-band"]],
});
const tokens = lineChart($("tokens-chart"), {
  ...common, ...wholeBars, height: 130, label: "Tokens counted by round", y: compact,
  range: (min, max) => [0, max * 1.1 || 1],
  series: [{ name: "tokens counted", tone: "--run", bars: true, width: 0, value: compact }],
});
const part = lineChart($("part-chart"), {
  ...common, ...wholeBars, height: 130, label: "Miners included by round", y: int, over: discarded,
  range: (min, max) => [0, Math.max(1, max * 1.1)],
  series: [
    { name: "candidates", tone: "--solo", dash: [5, 3], stepped: true, value: int },
    { name: "included", tone: "--run", width: 2, stepped: true, value: int },
    { name: "slices lost", tone: "--lost", stepped: true, width: 1.5, value: int },
  ],
});

function draw() {
  $("loss").hidden = !state.run.rounds.index.length;
  const { rounds, baselines, initial_heldout_loss: initial } = state.run;
  const first = span === Infinity ? -Infinity : (rounds.index.at(-1) ?? 0) - span;
  const at = new Map();
  const put = (index, place, value) => {
    if (index < first || value == null) return;
    if (!at.has(index)) at.set(index, [null, null, null, null, null, null]);
    at.get(index)[place] = value;
  };
  if (rounds.index.length && rounds.index[0] === 0) put(-1, 0, initial);
  rounds.index.forEach((index, i) => { put(index, 0, rounds.heldout_loss[i]); put(index, 1, rounds.train_loss[i]); });
  for (const [index, value] of baselines?.union ?? []) put(index, 2, value);
  const alone = new Map();
  for (const curve of Object.values(baselines?.solo ?? {}))
    for (const [index, value] of curve) if (value != null) alone.set(index, [...(alone.get(index) ?? []), value]);
  for (const [index, values] of alone) {
    put(index, 3, mean(values));
    put(index, 4, Math.max(...values));
    put(index, 5, Math.min(...values));
  }
  const xs = [...at.keys()].sort((a, b) => a - b);
  loss.update([xs, ...[0, 1, 2, 3, 4, 5].map((place) => xs.map((index) => at.get(index)[place]))]);
  const from = Math.max(0, rounds.index.findIndex((index) => index >= first));
  const cut = (column) => column.slice(from);
  tokens.update([cut(rounds.index), cut(rounds.tokens)]);
  part.update([cut(rounds.index), cut(rounds.candidates), cut(rounds.included), cut(rounds.lost)]);
  say($("loss-says"), sentence());
  say($("loss-note"), text(baselines && state.run.run.baseline_note).replace("–", ""));
  drawSpans(rounds.index.length);
  drawTable();
}

function sentence() {
  const { rounds, baselines, initial_heldout_loss: initial } = state.run;
  const last = rounds.heldout_loss.findLastIndex((x) => x != null);
  if (last < 0) return "No held-out loss is known here: validators and the owner measure it.";
  const now = rounds.heldout_loss[last];
  const began = initial == null ? "" : `; it began at ${fixed(initial)}`;
  const words = [`After round ${int(rounds.index[last])} the held-out loss is ${fixed(now)}${began}.`];
  const same = (curve) => curve.find(([index]) => index === rounds.index[last])?.[1] ?? null;
  const alone = mean(Object.values(baselines?.solo ?? {}).map(same).filter((x) => x != null));
  const union = same(baselines?.union ?? []);
  if (alone != null) words.push(`A miner alone would be at ${fixed(alone)}.`);
  if (union != null) words.push(`One machine with all the data would be at ${fixed(union)}.`);
  const thrown = rounds.applied.filter((x) => x === false).length;
  const count = plural(rounds.index.length, "round");
  words.push(thrown ? `${count} here, ${int(thrown)} discarded (×).` : `${count} here, none discarded.`);
  return words.join(" ");
}

function drawSpans(count) {
  $("span").hidden = count <= 20;
  if (count <= 20) return;
  const choices = [[Infinity, "all"], [200, "last 200"], [20, "last 20"]].filter(([n]) => n === Infinity || n < count);
  $("span").replaceChildren(...choices.map(([n, words]) => h("button", {
    type: "button", "aria-pressed": String(n === span), "data-span": String(n),
    onclick: () => { span = n; draw(); $("span").querySelector(`[data-span="${n}"]`).focus(); },
  }, words)));
}

const COLUMNS = [
  ["Round", (i) => int(state.run.rounds.index[i]), "num"],
  ["Outcome", (i) => (state.run.rounds.applied[i] ? "applied" : text(state.run.rounds.reason[i]))],
  ["Held-out loss", (i) => fixed(state.run.rounds.heldout_loss[i], 4), "num"],
  ["Training loss", (i) => fixed(state.run.rounds.train_loss[i], 4), "num"],
  ["Tokens", (i) => int(state.run.rounds.tokens[i]), "num"],
  ["Included", (i) => `${int(state.run.rounds.included[i])} of ${int(state.run.rounds.candidates[i])}`, "num"],
  ["Backed up", (i) => int(state.run.rounds.backed_up[i]), "num"],
  ["Lost", (i) => int(state.run.rounds.lost[i]), "num"],
  ["Took", (i) => seconds(state.run.rounds.seconds[i]), "num"],
  ["State", (i) => text(state.run.rounds.state_root[i])],
  ["Same everywhere", (i) => ({ true: "yes", false: "NO" })[state.run.rounds.identical[i]] ?? "not known"],
];
const MOST_ROWS = 500;
const drawTable = lazy($("rounds-table"), () => {
  const count = state.run.rounds.index.length;
  const rows = Array.from({ length: Math.min(count, MOST_ROWS) }, (_, i) => count - 1 - i);
  const cut = count > MOST_ROWS && h("p", { class: "quiet" }, `The newest ${MOST_ROWS} of ${int(count)} rounds.`);
  return h("div", null, cut, table("Every round", COLUMNS, rows));
});

on("run", draw);
on("shown", () => { for (const chart of [loss, tokens, part]) chart.redraw(); });
