// Small pictures inside tables: a trend, a share, an error between its two thresholds.

import { s } from "./dom.js";
import { digits, fixed, percent } from "./format.js";

/** A sparkline of numbers; what is absent is a gap. */
export function trend(values, label) {
  const wide = 84;
  const high = 18;
  const known = (values ?? []).filter((x) => x != null);
  if (!known.length) return s("svg", { class: "trend", width: wide, height: high });
  const top = Math.max(...known) || 1;
  const step = wide / Math.max(1, values.length - 1);
  const last = values.findLastIndex((x) => x != null);
  const point = (x, i) => `${(i * step).toFixed(1)},${(high - 2 - (x / top) * (high - 4)).toFixed(1)}`;
  const [endX, endY] = point(values[last], last).split(",");
  return s("svg", {
    class: "trend", width: wide, height: high, viewBox: `-2 0 ${wide + 4} ${high}`,
    role: "img", "aria-label": `${label}: from ${percent(known[0])} to ${percent(known.at(-1))}`,
  },
    s("polyline", { points: values.map((x, i) => (x == null ? "" : point(x, i))).join(" ") }),
    s("circle", { r: 1.8, cx: endX, cy: endY }));
}

/** A share of 1 as a bar. */
export function share(value) {
  return s("svg", { class: "share", width: 64, height: 8, role: "img", "aria-label": percent(value) },
    s("rect", { class: "track", width: 64, height: 8 }),
    s("rect", { class: "full", width: 64 * Math.min(1, Math.max(0, value ?? 0)), height: 8 }));
}

/** An audit's error on a scale with its two thresholds: good up to the first line, bad from the second. */
export function thresholds({ error, good, bad }) {
  if (error == null || good == null || bad == null) return digits(error);
  const wide = 120;
  const at = (x) => Math.min(1, x / (bad * 1.2)) * (wide - 2);
  const kind = error <= good ? "good" : error > bad ? "bad" : "between";
  const words = `error ${digits(error)}; good up to ${fixed(good)}, bad above ${fixed(bad)}`;
  return s("svg", { class: "thresholds", width: wide, height: 14, role: "img", "aria-label": words },
    s("title", null, words),
    s("rect", { class: "track", y: 5, width: wide, height: 4 }),
    s("rect", { class: kind, y: 5, width: Math.max(1, at(error)), height: 4 }),
    s("path", { class: "limit", d: `M${at(good)} 2v10M${at(bad)} 2v10` }),
    s("circle", { class: kind, cx: Math.max(3, at(error)), cy: 7, r: 3 }));
}
