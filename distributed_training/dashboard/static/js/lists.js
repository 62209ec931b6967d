// The fault log, and the checkpoints with what benchmarks measured on them.

import { $, h, say, table } from "./dom.js";
import { fixed, int, plural, text, when } from "./format.js";
import { on, state } from "./store.js";

const FAULTS = [
  ["When", (one) => when(one.time), "num"],
  ["Round", (one) => int(one.round), "num"],
  ["Node", (one) => text(one.node)],
  ["What", (one) => h("b", null, text(one.what))], ["Detail", (one) => h("span", { class: "note" }, text(one.detail))],
];

function drawFaults({ faults, num_faults: all }) {
  const rest = faults.length < all ? `; the newest ${int(faults.length)} are below` : "";
  say($("faults-says"), faults.length ? `${plural(all, "fault")} noted${rest}.` : "No node that is followed here has noted a fault.");
  $("faults-list").replaceChildren(...(faults.length ? [table("Faults, newest first", FAULTS, faults)] : []));
}

function drawCheckpoints({ checkpoints, benchmarks }) {
  const tasks = [...new Set(benchmarks.map((one) => `${one.task}, ${one.metric}`))];
  const measured = new Map();
  for (const one of benchmarks) {
    if (!measured.has(one.round)) measured.set(one.round, {});
    measured.get(one.round)[`${one.task}, ${one.metric}`] = one.value;
  }
  const places = new Map(checkpoints.map((one) => [one.round, one.repo ?? one.path ?? `sha256 ${text(one.sha256)}`]));
  const tags = new Map(benchmarks.map((one) => [one.round, one.tag]));
  const rounds = [...new Set([...places.keys(), ...measured.keys()])].sort((a, b) => b - a);
  const none = "no benchmark has been run (scripts/evaluate.py)";
  const measures = tasks.length ? `${plural(tasks.length, "benchmark")} measured` : none;
  const words = `${plural(places.size, "checkpoint")} published; ${measures}.`;
  say($("checkpoints-says"), rounds.length ? words : "No checkpoint is known here: the owner publishes them.");
  $("checkpoints-list").replaceChildren(...(rounds.length ? [table("Checkpoints, newest first", [
    ["Before round", (round) => int(round), "num"], ["Where", (round) => text(places.get(round) ?? tags.get(round))],
    ...tasks.map((task) => [task, (round) => fixed(measured.get(round)?.[task]), "num"]),
  ], rounds)] : []));
}

let drawnFaults = null;
let drawnCheckpoints = null;
on("run", () => {
  const { run } = state;
  const faults = JSON.stringify([run.faults, run.num_faults]);
  const checkpoints = JSON.stringify([run.checkpoints, run.benchmarks]);
  if (faults !== drawnFaults) { drawnFaults = faults; drawFaults(run); }
  if (checkpoints !== drawnCheckpoints) { drawnCheckpoints = checkpoints; drawCheckpoints(run); }
});
