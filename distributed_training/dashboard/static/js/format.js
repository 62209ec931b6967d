// Numbers, times and names as people read them. What is absent is a dash.

const NONE = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

const known = (x) => typeof x === "number" && Number.isFinite(x);

export const int = (x) => (known(x) ? whole.format(x) : NONE);
export const fixed = (x, decimals = 3) => (known(x) ? x.toFixed(decimals) : NONE);
export const percent = (x, decimals = 1) => (known(x) ? `${(100 * x).toFixed(decimals)} %` : NONE);
export const when = (t) => (known(t) ? clock.format(t * 1000) : NONE);
export const date = (t) => (known(t) ? day.format(t * 1000) : NONE);
export const seconds = (x) => (known(x) ? `${x < 100 ? x.toFixed(1) : whole.format(x)} s` : NONE);

/** 124439808 -> "124.4 M". */
export function compact(x) {
  if (!known(x)) return NONE;
  for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(x) >= size) return `${(x / size).toFixed(x >= 100 * size ? 0 : 1)} ${letter}`;
  return Number.isInteger(x) ? String(x) : x.toPrecision(3);
}

/** Three significant digits, for numbers of any size: 0.00149, 0.667, 12.3. */
export function digits(x) {
  if (!known(x)) return NONE;
  if (x !== 0 && Math.abs(x) < 1e-4) return x.toExponential(1);
  return x >= 1000 ? int(x) : String(Number(x.toPrecision(3)));
}

export const bytesPerSecond = (x) => (known(x) ? `${compact(x)}B/s` : NONE);
export const plural = (n, one, many = `${one}s`) => `${int(n)} ${n === 1 ? one : many}`;
export const text = (x) => (x == null || x === "" ? NONE : String(x));
export const mean = (xs) => (xs.length ? xs.reduce((a, b) => a + b, 0) / xs.length : null);

const AUDITS = { pass: "✓ pass", soft: "△ soft", fail: "✗ fail", none: "· none" };
export const audit = (verdict) => AUDITS[verdict] ?? text(verdict);
const PLACES = { safe: "● safe", watch: "▲ watch", danger: "■ danger" };
export const place = (word) => PLACES[word] ?? text(word);
