// Starts the page: each part names what it draws from what the store knows; nothing else is wired here.

import { $, say } from "./dom.js";
import { on, start, state } from "./store.js";
import "./masthead.js";
import "./header.js";
import "./nodes.js";
import "./curves.js";
import "./round.js";
import "./timeline.js";
import "./matrix.js";
import "./scores.js";
import "./board.js";
import "./panel.js";
import "./chain.js";
import "./lists.js";
import "./sample.js";

/** What to say instead of the parts, or null where there is something to show. */
function notice() {
  const { run, trouble } = state;
  if (!run && !trouble) return null;
  if (!run) return `${trouble} This page tries again by itself.`;
  if (run.now.state === "empty") return "No events yet: the page fills as soon as the run's first node starts.";
  if (run.rounds.index.length) return null;
  if (run.now.state === "chain") return "Read from the chain alone: what the rounds did is in no file here.";
  return `No round has ended yet${run.now.round == null ? "" : `: round ${run.now.round} is running`}.`;
}

on("run connection", () => {
  const words = notice();
  $("notice").hidden = words == null && state.run != null;
  if (words) say($("notice"), words);
  for (const link of $("contents").children) link.hidden = $(link.hash.slice(1)).hidden;
  $("main").hidden = $("contents").hidden = !state.run || state.run.now.state === "empty";
});

start();
