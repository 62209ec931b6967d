// One uPlot chart with a readout of its own: lines told apart by dash and width as well as colour.

import { colour, onWidth } from "./canvas.js";
import { h } from "./dom.js";
import { on } from "./store.js";

const uPlot = window.uPlot;

function axis(extra) {
  const hair = { stroke: () => colour("--hair"), width: 1 };
  const font = "11px system-ui, sans-serif";
  return { stroke: () => colour("--quiet"), grid: hair, ticks: { ...hair, size: 4 }, font, ...extra };
}

function swatch({ tone, dash, width, bars, dots }) {
  const mark = h("i", { class: `swatch ${bars ? "block" : dots ? "dot" : dash ? "dashed" : ""}` });
  mark.style.setProperty("--tone", `var(${tone})`);
  mark.style.setProperty("--thick", `${width ?? 1.5}px`);
  return mark;
}

const STEPS = [1, 2, 5].flatMap((step) => [0, 1, 2, 3, 4].map((zeros) => step * 10 ** zeros)).sort((a, b) => a - b);
const bars = uPlot.paths.bars({ size: [0.7, 40], align: 0 });
const stepped = uPlot.paths.stepped({ align: 1 });

/** One of our series as uPlot draws it. */
function drawn(one) {
  const tone = () => colour(one.tone);
  const few = (u) => u.data[0].length < 12;
  return {
    spanGaps: true,
    dash: one.dash,
    stroke: one.silent ? null : tone,
    fill: one.bars ? tone : undefined,
    width: one.silent || one.dots ? 0 : one.width ?? 1.5,
    paths: one.dots ? () => null : one.bars ? bars : one.stepped ? stepped : undefined,
    points: {
      show: one.dots || (one.silent || one.bars ? false : few),
      size: one.dots ? 5 : 4, stroke: tone, fill: tone, width: 0,
    },
  };
}

/**
 * A chart in `figure`. Options: label; height; series [{name, tone, width, dash, bars, dots, stepped, silent, value}];
 * bands [[upper, lower, tone]] by place in series (0 = x); x(value) -> words of the readout; tick(value), y(value) ->
 * words of the axes; xRange(u, min, max), range(min, max) -> [min, max]; marked() -> x of the upright line or null;
 * over(u, context) draws on top; chosen(x) on a click.
 */
export function lineChart(figure, options) {
  const { height, series, x, y, tick, label, bands = [] } = options;
  const yRange = options.range ?? ((min, max) => uPlot.rangeNum(min, max, 0.08, true));
  const holder = h("div", { class: "plot", role: "img", "aria-label": label });
  const values = series.map(() => h("b"));
  const place = h("span", { class: "place" });
  const keys = series.map((one, i) => (one.silent ? null : h("span", null, swatch(one), one.name, " ", values[i])));
  figure.append(h("figcaption", { class: "readout" }, place, keys), holder);
  let data = null;
  let plot = null;
  let width = 0;

  function read(index) {
    const at = index ?? restIndex();
    place.textContent = at == null || !data?.[0].length ? "" : x(data[0][at]);
    series.forEach((one, i) => { values[i].textContent = at == null ? "" : one.value(data?.[i + 1][at]); });
  }
  function restIndex() {
    const marked = options.marked?.();
    const at = marked == null ? -1 : data?.[0].indexOf(marked) ?? -1;
    return at >= 0 ? at : data?.[0].length ? data[0].length - 1 : null;
  }
  function over(u) {
    const { ctx, bbox } = u;
    const marked = options.marked?.();
    ctx.save();
    if (marked != null && marked >= u.scales.x.min && marked <= u.scales.x.max) {
      const at = Math.round(u.valToPos(marked, "x", true)) + 0.5;
      ctx.strokeStyle = colour("--ink");
      ctx.globalAlpha = 0.45;
      ctx.lineWidth = devicePixelRatio;
      ctx.beginPath(); ctx.moveTo(at, bbox.top); ctx.lineTo(at, bbox.top + bbox.height); ctx.stroke();
      ctx.globalAlpha = 1;
    }
    options.over?.(u, ctx);
    ctx.restore();
  }
  function make() {
    plot?.destroy();
    plot = new uPlot({
      width, height, padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      scales: { x: { time: false, range: options.xRange }, y: { range: (u, min, max) => yRange(min, max) } },
      axes: [
        axis({ values: (u, ticks) => ticks.map(tick), incrs: STEPS, size: 28, space: 46 }),
        axis({ values: (u, ticks) => ticks.map(y), size: 46, space: 28 }),
      ],
      bands: bands.map(([upper, lower, tone]) => ({ series: [upper, lower], fill: () => colour(tone) })),
      series: [{}, ...series.map(drawn)],
      hooks: { draw: [over], setCursor: [(u) => read(u.cursor.idx)] },
    }, data, holder);
    plot.over.addEventListener("click", () => {
      if (plot.cursor.idx != null) options.chosen?.(data[0][plot.cursor.idx]);
    });
  }
  onWidth(figure, (now) => { width = now; if (data) make(); });
  on("theme", () => plot?.redraw(false));
  return {
    update(columns) {
      data = columns;
      keys.forEach((key, i) => { if (key) key.hidden = columns[i + 1].every((value) => value == null); });
      if (plot) plot.setData(data); else if (width) make();
      read(null);
    },
    redraw() { plot?.redraw(false); if (data) read(null); },
  };
}
