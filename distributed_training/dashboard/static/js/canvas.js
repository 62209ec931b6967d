// A canvas that knows its size, its pixels and the theme's colours, and says what lies under the pointer or the cursor.

import { h } from "./dom.js";
import { on } from "./store.js";

const probe = h("span", { hidden: true });
document.body.append(probe);
const colours = new Map();

/** A colour of the theme as the canvas understands it: colour("--train"). */
export function colour(name) {
  if (!colours.has(name)) {
    probe.style.color = `var(${name})`;
    colours.set(name, getComputedStyle(probe).color);
  }
  return colours.get(name);
}
on("theme", () => colours.clear());

/** What the tones of a drawing mean: [[tone, words], ...], and signs said in words. */
export function legend(tones, ...signs) {
  return h("p", { class: "legend" }, tones.map(([tone, words]) => {
    const block = h("i", { class: "swatch block" });
    block.style.setProperty("--tone", `var(${tone})`);
    return h("span", null, block, words);
  }), signs.map((sign) => h("span", null, sign)));
}

const watched = new WeakMap();
const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) watched.get(target)(Math.round(contentRect.width));
});

/** Calls `resized(width)` when an element's width changes, and once at the start. */
export function onWidth(element, resized) {
  let width = 0;
  watched.set(element, (now) => { if (now && now !== width) { width = now; resized(now); } });
  sizes.observe(element);
}

/**
 * A drawing in `figure`. paint(context, width) -> nothing; height(width) and least width in CSS pixels;
 * at(x, y) -> what to say of that point, or ""; move(key) -> what to say after an arrow key, or null.
 */
export function drawing(figure, { label, height, leastWidth = () => 0, paint, at, move }) {
  const canvas = h("canvas", { role: "img", tabindex: "0", "aria-label": label });
  const said = h("figcaption", { class: "readout", "aria-live": "polite" });
  figure.append(h("div", { class: "canvas-scroll" }, canvas), said);
  let width = 0;
  let rest = "";
  function draw() {
    if (!width) return;
    const wide = Math.max(width, leastWidth());
    const high = Math.round(height(wide));
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${high}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, wide, high);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    paint(context, wide);
  }
  const show = (words) => { said.textContent = words || rest; };
  onWidth(figure, (now) => { width = now; draw(); });
  canvas.addEventListener("pointermove", (event) => show(at(event.offsetX, event.offsetY)));
  canvas.addEventListener("pointerdown", (event) => show(at(event.offsetX, event.offsetY)));
  canvas.addEventListener("pointerleave", () => show(""));
  canvas.addEventListener("keydown", (event) => {
    const words = event.key.startsWith("Arrow") ? move(event.key) : null;
    if (words == null) return;
    event.preventDefault();
    show(words);
    draw();
  });
  on("theme", draw);
  return { draw, rest: (words) => { rest = words; show(""); } };
}
