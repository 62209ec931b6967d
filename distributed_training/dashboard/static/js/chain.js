// Validators beside each other, their weights and the chain's incentive by miner, and what the chain says of every uid.

import { $, h, lazy, say, table } from "./dom.js";
import { compact, digits, fixed, int, mean, percent, plural, text } from "./format.js";
import { grid, number } from "./grid.js";
import { lineChart } from "./lines.js";
import { share } from "./marks.js";
import { who } from "./panel.js";
import { on, state } from "./store.js";

const agreement = (x) => h("span", { class: "with-bar" }, share(x), fixed(x));
const validators = grid($("validators"), {
  caption: "Validators", by: "-stake", empty: "No validator is heard of here yet.",
  columns: [
    who("Validator"), number("uid", "uid", int), number("stake", "Stake", compact),
    number("last_round", "Last round", int),
    number("agreement", "Agreement", agreement, "1: gives every miner what the others give it"),
  ],
});

let miners = []; // by rank, as the chart's places
const chart = lineChart($("weights-chart"), {
  height: 240,
  label: "Weights of the validators and incentive by miner; the leaderboard and the table below say the same",
  x: (at) => text(miners[at]?.name),
  tick: (at) => (miners[at] ? `#${at + 1}` : ""),
  y: (v) => percent(v, 1),
  range: (min, max) => [0, max * 1.1 || 1],
  xRange: (u, min, max) => [min - 0.5, max + 0.5],
  series: [
    { silent: true, value: () => "" }, { silent: true, value: () => "" },
    { name: "validators, mean", tone: "--run", dots: true, value: (v) => percent(v, 2) },
    { name: "incentive", tone: "--union", stepped: true, value: (v) => percent(v, 2) },
  ],
  bands: [[1, 2, "--solo-band"]],
});

function drawChart(run) {
  miners = [...run.leaderboard].sort((a, b) => a.rank - b.rank);
  const given = miners.map(({ uid }) => run.validators.map((one) => one.weights?.[uid]).filter((x) => x != null));
  const some = (pick) => given.map((shares) => (shares.length ? pick(shares) : null));
  const most = some((shares) => Math.max(...shares));
  const least = some((shares) => Math.min(...shares));
  chart.update([miners.map((_, at) => at), most, least, some(mean), miners.map((row) => row.incentive)]);
}

function sentence(run) {
  const words = [];
  const known = run.validators.map((one) => one.agreement).filter((x) => x != null);
  if (known.length) words.push(`${plural(known.length, "validator")}; the least agreement is ${fixed(Math.min(...known))}, 1 is all.`);
  else if (run.validators.length === 1) words.push("One validator: there is nobody to agree with.");
  if (miners.length) words.push("Dots: a miner's mean weight; shade: least and most of the validators; line: its pay.");
  const { block, price } = state.chain ?? {};
  const costs = price == null ? "" : `; a new uid costs ${digits(price)} TAO`;
  words.push(state.chain ? `The chain is at block ${int(block)}${costs}.` : "No chain is in reach of this page.");
  return words.join(" ");
}

const COLUMNS = [
  ["uid", (one) => int(one.uid), "num"],
  ["Name", (one) => text(state.run.nodes.find((node) => node.uid === one.uid)?.name)],
  ["Stake", (one) => compact(one.stake), "num"],
  ["Incentive", (one) => percent(one.incentive, 2), "num"],
  ["Dividends", (one) => percent(one.dividends, 2), "num"],
  ["Immune for", (one) => (one.immune_blocks > 0 ? `${int(one.immune_blocks)} blocks` : "not immune"), "num"],
  ["Last weights", (one) => (one.last_update ? `block ${int(one.last_update)}` : "–"), "num"],
  ["May validate", (one) => (one.permit ? "yes" : "no")],
];
const drawTable = lazy($("chain-table"), () => table("Every uid on the chain", COLUMNS, state.chain?.uids ?? []));

function draw() {
  const { run } = state;
  if (!run) return;
  validators.update(run.validators.map(({ weights, ...row }) => ({ ...row, id: row.uid })));
  drawChart(run);
  say($("chain-says"), sentence(run));
  $("chain-table").hidden = !state.chain;
  drawTable();
}

on("run chain", draw);
