// The head of the page: which run this is, where it stands, and in a word whether all is well.

import { $, h, say } from "./dom.js";
import { compact, date, digits, fixed, int, text } from "./format.js";
import { on, state } from "./store.js";

const STATES = {
  running: "running", ended: "the run has ended", crashed: "no node is left", silent: "the nodes are silent",
  empty: "not begun", chain: "from the chain alone",
};
const VERDICTS = {
  "all well": ["well", "✓", "All well"],
  "the run": ["ill", "!", "Trouble in the run"],
  "the chain": ["ill", "!", "Trouble on the chain"],
};
const OVER = { ended: ["unknown", "■", "The run has ended"], crashed: ["ill", "!", "No node is left"] };
const UNKNOWN = ["unknown", "?", "Not known whether all is well"];

const dials = new Map();
/** One reading: a name, a large value, a small note. */
function dial(name, value, note = "") {
  if (!dials.has(name)) {
    const parts = { value: h("dd"), note: h("dd", { class: "quiet" }) };
    dials.set(name, parts);
    $("dials").append(h("dl", null, h("dt", null, name), parts.value, parts.note));
  }
  say(dials.get(name).value, value);
  say(dials.get(name).note, note);
}

function drawDials({ run, now, rounds, initial_heldout_loss: initial }) {
  const running = now.state === "running";
  const last = rounds.index.length - 1;
  const loss = rounds.heldout_loss.findLast((x) => x != null);
  const of = last < 0 ? "" : `round ${int(rounds.index[last])}`;
  dial("Round", int(now.round), STATES[now.state]);
  dial("Phase", text(running ? now.phase : null));
  dial("Block", int(now.block), run.block_s ? `one in ${digits(run.block_s)} s` : "");
  dial("Held-out loss", fixed(loss), initial == null ? "" : `from ${fixed(initial)}`);
  const included = `${int(rounds.included[last])}/${int(rounds.candidates[last])}`;
  dial("Included", last < 0 ? "–" : included, of && `miners, ${of}`);
  dial("Tokens", compact(rounds.tokens[last]), of && `counted, ${of}`);
}

/** A thin bar of the round's phases, filled as far as the round has come. */
function drawPhases({ phases = [], round_blocks: length }, { state: word, phase, round_block: at }) {
  const bar = $("phase-bar");
  bar.hidden = !phases.length || !length || word !== "running";
  if (bar.hidden) return;
  const place = at == null ? "" : `, block ${at} of ${length} of the round`;
  bar.setAttribute("aria-label", `phase ${text(phase)}${place}`);
  bar.replaceChildren(...phases.map(({ name, block }, i) => {
    const end = phases[i + 1]?.block ?? length;
    const part = h("span", { class: name === phase && "here" }, h("i"), h("b", null, name));
    const done = at == null ? Number(name === phase) : Math.min(1, Math.max(0, (at - block) / (end - block)));
    part.style.flexGrow = Math.max(end - block, length / 12);
    part.firstChild.style.width = `${100 * done}%`;
    return part;
  }));
}

function drawVerdict({ state: at, verdict: { word, reasons } }) {
  const [kind, mark, said] = OVER[at] ?? VERDICTS[word] ?? UNKNOWN;
  const [summary, list] = $("verdict").children;
  if ($("verdict").dataset.said !== said) {
    Object.assign($("verdict").dataset, { said, kind });
    const sign = h("span", { class: "mark", "aria-hidden": "true" }, mark);
    summary.replaceChildren(sign, ` ${said} `, h("span", { class: "quiet" }, "why"));
  }
  const silence = kind === "unknown" ? "Neither a node nor a chain has said it here." : "Nothing speaks against it.";
  list.replaceChildren(...(reasons.length ? reasons : [silence]).map((reason) => h("li", null, reason)));
}

function draw() {
  const { run, now } = state.run;
  const name = text(run.name ?? "Distributed training");
  document.title = now.round == null ? name : `${name}, round ${now.round}`;
  say($("run-name"), name);
  say($("run-model"), [
    run.model?.type,
    run.model?.num_params && `${compact(run.model.num_params)} parameters`,
    run.sequence_length && `${int(run.sequence_length)} tokens a sequence`,
    run.netuid != null && `netuid ${run.netuid}`,
    run.tag && `run ${run.tag}`,
  ].filter(Boolean).join(" · "));
  drawDials(state.run);
  drawPhases(run, now);
  drawVerdict(now);
  const manifest = run.manifest_sha256 ? ` Manifest ${run.manifest_sha256}.` : "";
  const asked = "This page asks nothing of any address but its own.";
  const read = now.time == null ? "" : `As of ${date(now.time)}.`;
  say($("foot"), `${read}${manifest} ${asked}`);
}

on("run", draw);
