// The run's nodes and what each does now; drawn only while it is open.

import { $, say } from "./dom.js";
import { compact, fixed, int, plural, text, when } from "./format.js";
import { grid, note, number, words } from "./grid.js";
import { who } from "./panel.js";
import { on, state, steps } from "./store.js";

/** The file of a node that was stopped says no more than that of one that was killed. */
const said = (word) => (word === "killed" ? "stopped or killed" : text(word));

const [summary, box] = $("nodes").children;
const nodes = grid(box, {
  caption: "Nodes and what they do now", by: "uid", empty: "No node has said anything yet.",
  columns: [
    who("Node"), { ...number("uid", "uid", text), upward: true },
    words("state", "State", said), words("phase", "Phase", text),
    number("step", "Step", int), number("loss", "Loss", fixed), number("tokens_per_s", "Tokens/s", compact),
    number("last_seen", "Last seen", when), note("trouble", "Trouble"),
  ],
});

function drawRows() {
  if (!$("nodes").open || !state.run) return;
  nodes.update(state.run.nodes.map(({ adversary, trouble, ...node }) => ({
    ...node, ...steps.get(node.uid), id: node.name,
    trouble: [adversary && `adversary: ${adversary}`, trouble].filter(Boolean).join("; "),
  })));
}

function draw() {
  const counts = new Map();
  for (const node of state.run.nodes) counts.set(node.state, (counts.get(node.state) ?? 0) + 1);
  const states = [...counts].map(([word, count]) => `${count} ${said(word)}`).join(", ");
  $("nodes").hidden = !counts.size;
  say(summary, `${plural(state.run.nodes.length, "node")}: ${states}`);
  drawRows();
}

$("nodes").addEventListener("toggle", drawRows);
on("run", draw);
on("steps", drawRows);
