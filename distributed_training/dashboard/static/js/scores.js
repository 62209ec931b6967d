// What the shown round's work was worth: training, scores, audits and weights, by miner, as one validator sees it.

import { $, h, say } from "./dom.js";
import { audit, digits, fixed, int, percent } from "./format.js";
import { grid, note, number, words } from "./grid.js";
import { thresholds } from "./marks.js";
import { who } from "./panel.js";
import { on, state } from "./store.js";

const losses = (row) => (row.loss_last == null ? "–" : `${fixed(row.loss_first, 2)} → ${fixed(row.loss_last, 2)}`);
const board = grid($("round-scores"), {
  caption: "Scores of the round by miner", by: "-weight", empty: "Nobody has trained in this round, or nobody told.",
  columns: [
    who("Miner"), number("id", "uid", int), number("steps", "Steps", int), number("tokens", "Tokens", int),
    { ...number("loss_last", "Loss", null, "first and last of the round"), cell: losses },
    number("credit", "Credit", (x) => percent(x, 0), "what its work of the round counted for, by the slices that include it"),
    number("S", "S", digits, "steps"), number("G", "G", digits, "fidelity"),
    number("B", "B", digits, "bandwidth"), number("I", "I", digits, "integrity"),
    number("weight", "Weight", percent), number("incentive", "Incentive", percent),
    words("verdict", "Audit", (verdict) => h("span", { "data-audit": verdict }, audit(verdict))),
    { ...number("error", "Error", null, "of the gradient; the lines are good and bad"), cell: thresholds },
    note("note", "Note"),
  ],
});

const REST_MS = 120;
const choice = $("scorer").querySelector("select");
choice.addEventListener("change", draw);

/** Offers the validators that scored this round, and gives the one that is chosen. */
function scorer(uids) {
  const chosen = uids.includes(choice.value) ? choice.value : uids[0];
  $("scorer").hidden = uids.length < 2;
  $("scores-say").hidden = uids.length > 0;
  const soon = state.run?.now.state === "running" && state.run.validators.some((one) => one.last_round != null);
  say($("scores-say"), soon ? "No validator has scored this round yet: that comes while the next one trains."
    : "No score of this round is known here.");
  if (choice.dataset.uids !== uids.join()) {
    choice.dataset.uids = uids.join();
    const option = (uid) => h("option", { value: uid, selected: uid === chosen }, `validator uid ${uid}`);
    choice.replaceChildren(...uids.map(option));
  }
  return chosen;
}

function draw() {
  const round = state.round?.error ? null : state.round;
  const validator = scorer(Object.keys(round?.scores ?? {}));
  const known = [...(state.run?.nodes ?? []), ...(state.run?.leaderboard ?? [])];
  const names = new Map(known.map((one) => [one.uid, one.name]));
  const rows = new Map();
  const add = (key, fields) => {
    const id = Number(key);
    const base = rows.get(id) ?? { id, name: names.get(id) ?? `uid ${id}`, incentive: round.incentive?.[id] };
    rows.set(id, { ...base, ...fields });
  };
  for (const { uid, steps, tokens, loss_first, loss_last } of round?.train ?? [])
    add(uid, { steps, tokens, loss_first, loss_last });
  for (const [uid, credit] of Object.entries(round?.credit ?? {})) add(uid, { credit });
  for (const [uid, { reason, note: said, ...card }] of Object.entries(round?.scores?.[validator] ?? {}))
    add(uid, { ...card, note: [reason, said].filter(Boolean).join("; ") });
  for (const { validator: by, uid, verdict, error, good, bad } of round?.audits ?? [])
    if (String(by) === validator) add(uid, { verdict, error, good, bad });
  board.update([...rows.values()]);
}

/** Once the slider rests: a table of hundreds of rows is no picture to drag through. */
let rest = 0;
on("round run", () => { clearTimeout(rest); rest = setTimeout(draw, REST_MS); });
