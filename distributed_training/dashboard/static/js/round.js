// The slider over past rounds. It follows the newest until it is moved; "Newest" follows again.

import { $, say } from "./dom.js";
import { compact, int, plural, seconds, text } from "./format.js";
import { on, showRound, state } from "./store.js";

const slider = $("round-slider");
const rounds = () => state.run.rounds.index;

function go(place) {
  const last = rounds().length - 1;
  showRound(place >= last ? null : rounds()[Math.max(0, place)]);
}

function drawBar() {
  if (!state.run) return;
  const last = rounds().length - 1;
  const place = rounds().indexOf(state.shown);
  $("round").hidden = last < 0;
  slider.max = Math.max(0, last);
  if (Number(slider.value) !== place) slider.value = place;
  slider.setAttribute("aria-valuetext", `round ${text(state.shown)}`);
  say($("round-h"), `Round ${int(state.shown)}`);
  $("round-back").disabled = place <= 0;
  $("round-next").disabled = place >= last;
  $("round").setAttribute("aria-busy", String(state.round?.index !== state.shown));
  $("round-live").setAttribute("aria-pressed", String(state.following));
}

function sentence(shown) {
  if (shown.error) return `Round ${shown.index}: ${shown.error}.`;
  const { rounds: all } = state.run;
  const i = all.index.indexOf(shown.index);
  const words = [shown.applied ? "Applied" : "Discarded"];
  if (shown.start != null && shown.end != null) words.push(` in ${seconds(shown.end - shown.start)}`);
  if (!shown.applied) words.push(`: ${text(shown.reason)}`);
  if (i >= 0) {
    const part = `${int(all.included[i])} of ${plural(all.candidates[i], "miner")} included`;
    words.push(`. ${part}`);
    if (all.tokens[i] != null) words.push(`, ${compact(all.tokens[i])} tokens`);
    if (all.identical[i] === true) words.push(`; every node holds the same state, ${text(all.state_root[i])}`);
    if (all.identical[i] === false) words.push("; nodes hold DIFFERENT states");
  }
  if (shown.faults?.length) words.push(`; ${plural(shown.faults.length, "fault")} noted`);
  return `${words.join("")}.`;
}

slider.addEventListener("input", () => go(Number(slider.value)));
$("round-back").addEventListener("click", () => go(rounds().indexOf(state.shown) - 1));
$("round-next").addEventListener("click", () => go(rounds().indexOf(state.shown) + 1));
$("round-live").addEventListener("click", () => showRound(null));

on("run round shown following", drawBar);
on("run round", () => {
  if (state.round) say($("round-says"), sentence(state.round));
});
