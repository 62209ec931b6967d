// The leaderboard: every miner with its weight, what the weight is made of, and whether its uid stays.

import { $, h, say } from "./dom.js";
import { audit, compact, digits, int, percent, place, plural, text } from "./format.js";
import { grid, note, number, words } from "./grid.js";
import { trend } from "./marks.js";
import { who } from "./panel.js";
import { on, state } from "./store.js";

/** How its uid stands: in a word, and what that hangs on. */
function standing(safe) {
  if (!safe) return "–";
  let why = null;
  if (safe.immune_blocks > 0) why = `immune ${int(safe.immune_blocks)} blocks`;
  else if (safe.free_places) why = `${plural(safe.free_places, "place")} free`;
  else if (safe.prunable_rank != null) why = `${int(safe.prunable_rank - 1)} go before it`;
  return h("span", { "data-place": safe.word, title: safe.said }, [place(safe.word), why].filter(Boolean).join(" · "));
}

/** The last audit, and how many of all passed. */
function audited(row) {
  const { pass = 0, soft = 0, fail = 0 } = row.audits ?? {};
  const all = pass + soft + fail;
  const passed = all ? h("span", { class: "quiet" }, ` ${pass}/${all}`) : null;
  return h("span", { "data-audit": row.last_audit }, audit(row.last_audit), passed);
}

const PLACES = ["danger", "watch", "safe"];
const share = (x) => percent(x, 2);
const rise = ({ trend: past = [] }) => (past.findLast((x) => x != null) ?? 0) - (past[0] ?? 0);
const board = grid($("board-grid"), {
  caption: "Leaderboard", by: "rank",
  empty: "No miner has a weight yet: the first comes with the first round that a validator has scored.",
  columns: [
    who("Miner"), { ...number("rank", "Rank", int), upward: true }, number("uid", "uid", int),
    number("weight", "Weight", share),
    { ...number("trend", "Trend", (past) => trend(past, "weight"), "weight over the last 20 rounds"), value: rise },
    number("incentive", "Incentive", share, "what the chain pays, as a share"),
    number("S", "S", digits, "steps"), number("G", "G", digits, "fidelity"),
    number("B", "B", digits, "bandwidth"), number("I", "I", digits, "integrity"),
    { ...words("last_audit", "Audit", text, "the last one; then how many of all passed"), cell: audited },
    number("tokens", "Tokens", compact),
    number("included_share", "Included", (x) => percent(x, 0), "share of the rounds it was included in"),
    { ...words("safe", "Place", standing, "whether its uid stays"), value: (row) => PLACES.indexOf(row.safe?.word) },
    note("note", "Note"),
  ],
});

function sentence(rows) {
  const known = rows.filter((row) => row.weight != null);
  if (!known.length) return "";
  const top = known.find((row) => row.rank === 1);
  const ill = rows.filter((row) => row.safe?.word === "danger" || row.safe?.word === "watch").length;
  return [
    `${plural(known.filter((row) => row.weight > 0).length, "miner")} of ${int(rows.length)} earn.`,
    top && `${top.name} leads with ${share(top.weight)}.`,
    ill && `${plural(ill, "uid")} may lose ${ill === 1 ? "its" : "their"} place: sort by Place.`,
    "Choose a name to see why it has its weight.",
  ].filter(Boolean).join(" ");
}

function draw() {
  const rows = state.run.leaderboard.map((row) => ({ ...row, id: row.uid }));
  const sought = $("board-search").value.trim().toLowerCase();
  const fits = (row) => String(row.uid) === sought || text(row.name).toLowerCase().includes(sought);
  if (sought && rows.length) board.update(rows.filter(fits), "No miner here has that uid or name.");
  else board.update(rows);
  say($("board-says"), sentence(rows));
}

$("board-search").addEventListener("input", draw);
on("run", draw);
