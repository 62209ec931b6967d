// The box to try the model: the newest checkpoint beside the one of ten rounds ago, on one prompt.

import { $, h, say } from "./dom.js";
import { int, digits, plural } from "./format.js";
import { on, sample, state } from "./store.js";

const form = $("sample-form");
const button = form.querySelector("button");

/** How many rounds of training lie between two texts: the run may have no checkpoint of just ten before. */
const earlier = (newest, before) => (before ? `${plural(newest.round - before.round, "round")} before` : "Before");

function written(title, one) {
  const speed = one ? `as round ${int(one.round)} began, ${digits(one.tokens_per_s)} tokens a second` : "";
  return h("article", { class: "written" },
    h("h3", null, title, " ", h("span", { class: "unit" }, speed)),
    h("p", null, one ? one.text : "There is no checkpoint that old yet."));
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = Object.fromEntries(new FormData(form));
  const request = { prompt: fields.prompt };
  for (const name of ["max_tokens", "temperature", "top_k", "top_p", "seed"]) request[name] = Number(fields[name]);
  button.disabled = true;
  say($("sample-says"), "Writing …");
  try {
    const { newest, before } = await sample(request);
    $("sample-out").replaceChildren(written("Newest", newest), written(earlier(newest, before), before));
    say($("sample-says"), "");
  } catch (error) {
    say($("sample-says"), error.message);
  } finally {
    button.disabled = false;
  }
});

on("run", () => {
  $("sample").hidden = !state.run.features?.sample;
});
