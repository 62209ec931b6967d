// Whether the page is in touch with its server, and the button for light and dark.

import { $, say } from "./dom.js";
import { when } from "./format.js";
import { connection, on, state, tell } from "./store.js";

const WORDS = {
  connecting: "connecting", live: "live", disconnected: "disconnected, trying again", copy: "published copy",
};

function drawConnection() {
  const { word, since } = connection;
  const quiet = word === "live" && state.run && state.run.now.state !== "running";
  $("connection").dataset.kind = word;
  $("connection").title = word === "disconnected" ? `since ${when(since / 1000)}; what is shown is from before` : "";
  say($("connection"), quiet ? "in touch" : WORDS[word]);
}

const system = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

function drawTheme() {
  const other = isDark() ? "light" : "dark";
  say($("theme"), isDark() ? "Light" : "Dark");
  $("theme").setAttribute("aria-label", `Use the ${other} theme`);
  tell("theme");
}

$("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("dt-theme", root.dataset.theme); } catch { /* storage is forbidden */ }
  drawTheme();
});
system.addEventListener("change", drawTheme);

drawTheme();
drawConnection();
on("run connection", drawConnection);
