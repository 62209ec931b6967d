// Why a miner has its weight: sentences first, then what was observed, each audit against its thresholds, and faults.

import { $, h, s, table } from "./dom.js";
import { audit, bytesPerSecond, digits, int, percent, place, text, when } from "./format.js";
import { thresholds } from "./marks.js";
import { on, showUid, state } from "./store.js";

/** A grid's first column: a name that opens its panel. Rows have `uid`, or are known by it. */
export function who(label) {
  const open = (row) => showUid(row.uid ?? row.id);
  const name = (row) =>
    h("button", { class: "link", type: "button", "aria-haspopup": "dialog", onclick: () => open(row) }, text(row.name));
  return { key: "name", label, value: (row) => row.name, cell: name };
}

/** Weight as bars by round, incentive as a line over them; the table below says the same. */
function history(rounds) {
  const [wide, high] = [560, 90];
  const top = Math.max(1e-9, ...rounds.flatMap((one) => [one.weight ?? 0, one.incentive ?? 0]));
  const step = wide / rounds.length;
  const y = (x) => high - (x / top) * (high - 6);
  const bar = ({ weight, included }, i) => weight != null && s("rect", {
    class: included === false ? "left-out" : "weight",
    x: step * (i + 0.1), width: step * 0.8, y: y(weight), height: high - y(weight),
  });
  const point = ({ incentive }, i) => (incentive == null ? "" : `${step * (i + 0.5)},${y(incentive)}`);
  const [first, last] = [rounds[0].index, rounds.at(-1).index];
  const words = `Weight (bars) and incentive (line), rounds ${first} to ${last}; the top is ${percent(top, 2)}.`;
  return h("figure", { class: "history" },
    s("svg", { viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: "none", role: "img", "aria-label": words },
      rounds.map(bar), s("polyline", { class: "incentive", points: rounds.map(point).join(" ") })),
    h("figcaption", { class: "quiet" }, words));
}

const AUDITS = [
  ["Round", (one) => int(one.round), "num"],
  ["By", (one) => `uid ${text(one.validator)}`],
  ["Verdict", (one) => h("span", { "data-audit": one.verdict }, audit(one.verdict))],
  ["Error", thresholds],
  ["Steps", (one) => int(one.depth), "num"],
  ["Gave", (one) => bytesPerSecond(one.goodput_bytes_per_s), "num"],
  ["Duty", (one) => digits(one.duty), "num"],
  ["Reason", (one) => text(one.reason)],
];
const ROUNDS = [
  ["Round", (one) => int(one.index), "num"],
  ["Included", (one) => ({ true: "yes", false: "no" })[one.included] ?? "–"],
  ["Credit", (one) => percent(one.credit, 0), "num"],
  ["Steps", (one) => int(one.steps), "num"],
  ["Tokens", (one) => int(one.tokens), "num"],
  ...["S", "G", "B", "I"].map((term) => [term, (one) => digits(one[term]), "num"]),
  ["Weight", (one) => percent(one.weight, 2), "num"],
  ["Incentive", (one) => percent(one.incentive, 2), "num"],
];

/** A titled table, or nothing where there are no rows. */
function listed(caption, columns, rows) {
  if (!rows?.length) return [];
  const box = h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": caption });
  box.append(table(`${caption}, newest first`, columns, rows));
  return [h("h3", null, caption), box];
}

function standing(safe) {
  const locked = safe.collateral == null ? "" : `; collateral ${digits(safe.collateral)}`;
  return h("p", null, h("span", { "data-place": safe.word }, place(safe.word)), `: ${text(safe.said)}${locked}.`);
}

function fault({ what, round, time, detail }) {
  return h("li", null, h("b", null, text(what)), ` round ${int(round)}, ${when(time)}: ${text(detail)}`);
}

function parts(one) {
  if (one.error) return [h("p", { class: "finding" }, `Nothing to show: ${one.error}.`)];
  const why = one.why?.length ? one.why : ["Nothing is known yet of why it has its weight."];
  return [
    h("p", { class: "quiet hotkey" }, [one.role, `uid ${one.uid}`, one.hotkey].filter(Boolean).join(" · ")),
    h("ul", { class: "why" }, why.map((sentence) => h("li", null, sentence))),
    one.safe && standing(one.safe),
    one.rounds?.length && history(one.rounds),
    ...listed("Audits against their thresholds", AUDITS, one.observations),
    ...listed("Round by round", ROUNDS, one.rounds && [...one.rounds].reverse()),
    h("h3", null, "Faults"),
    one.faults?.length ? h("ul", { class: "faults" }, one.faults.map(fault)) : h("p", { class: "quiet" }, "None."),
  ].filter(Boolean);
}

const panel = $("panel");
let shown = null;

function draw() {
  const one = state.uid;
  if (!one) { panel.close(); return; }
  const held = panel.contains(document.activeElement);
  const scroll = shown === one.uid ? panel.scrollTop : 0;
  shown = one.uid;
  const close = h("button", { type: "button", class: "plain", id: "panel-close" }, "Close");
  close.addEventListener("click", () => panel.close());
  const title = h("h2", { id: "panel-h" }, text(one.name ?? `uid ${one.uid}`));
  panel.replaceChildren(h("div", { class: "panel-head" }, title, close), ...parts(one));
  if (!panel.open) panel.showModal(); else if (held) close.focus();
  panel.scrollTop = scroll;
}

panel.addEventListener("close", () => { shown = null; showUid(null); });
panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
on("uid", draw);
