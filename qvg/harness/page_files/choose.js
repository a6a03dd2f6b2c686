// What is chosen from what: limits, fronts, orders. No drawing here.
const data = JSON.parse(document.getElementById("data").textContent);
const films = JSON.parse(document.getElementById("films").textContent);
const metricOf = Object.fromEntries(data.metrics.map((metric) => [metric.key, metric]));
const state = { set: 0, drop: 1, ratio: 1, memory: Infinity, forms: true, objectives: "", across: "", up: "", order: "", chosen: "", beside: "", case: 0 };

const currentSet = () => data.sets[state.set];
const valueOf = (method, key) => { const value = method.values[key]; return value === undefined ? null : value; };
const exactOf = (set) => set.methods.find((method) => method.name === set.exact);

function labelOf(key, set = currentSet()) {
  const metric = metricOf[key], unit = (set.units || {})[key];
  return unit ? (key === "drift" ? `drift: ${unit}` : unit) : metric.label;
}

function shownValue(key, value) { return value === null ? "–" : value.toFixed(metricOf[key].digits); }

// Metrics that some method of the set has.
function known(set) { return data.metrics.map((metric) => metric.key).filter((key) => set.methods.some((method) => valueOf(method, key) !== null)); }

function allowed(method, set) {
  if (!state.forms && method.form === "published" && !set.published) return false;
  const exact = exactOf(set), top = exact && valueOf(exact, "ssim") !== null ? valueOf(exact, "ssim") : 1;
  const ssim = valueOf(method, "ssim"), ratio = valueOf(method, "compression"), peak = valueOf(method, "peak");
  if (state.drop < 1 && (ssim === null || top - ssim > state.drop + 1e-9)) return false;
  if (state.ratio > 1 && (ratio === null || ratio < state.ratio - 1e-9)) return false;
  return !(state.memory < Infinity && (peak === null || peak > state.memory));
}

// Methods that no other beats in all objectives that anybody has; one that lacks such a value is on no front.
function frontOf(methods, keys) {
  const used = keys.filter((key) => methods.some((method) => valueOf(method, key) !== null));
  const points = methods.filter((method) => used.length && used.every((key) => valueOf(method, key) !== null))
    .map((method) => [method, used.map((key) => metricOf[key].better * valueOf(method, key))]);
  const beaten = (one) => points.some(([, other]) => other.every((value, i) => value >= one[i]) && other.some((value, i) => value > one[i]));
  return new Set(points.filter(([, point]) => !beaten(point)).map(([method]) => method.name));
}

// By the first metric, equals (as they are shown) by the next; what was not measured comes last.
function ranked(methods, order) {
  const rows = methods.map((method) => [method, order.map((key) => {
    const value = valueOf(method, key);
    return value === null ? -Infinity : metricOf[key].better * Number(value.toFixed(metricOf[key].digits));
  })]);
  return rows.sort(([a, x], [b, y]) => {
    for (let i = 0; i < order.length; i++) if (x[i] !== y[i]) return y[i] - x[i];
    return a.name < b.name ? -1 : 1;
  }).map(([method]) => method);
}

// Of a card: methods that fit, the best of the chosen set first.
function fitting(gb, seconds) {
  const column = data.cards.seconds.indexOf(seconds), set = currentSet();
  const rows = Object.entries(data.cards.methods).map(([name, sizes]) => {
    const method = set.methods.find((each) => each.name === name);
    return { name, bytes: sizes[column], psnr: method ? valueOf(method, "psnr") : null, ssim: method ? valueOf(method, "ssim") : null };
  });
  const score = (row) => (row.psnr === null ? -1 : row.psnr);
  return rows.map((row) => ({ ...row, fits: row.bytes <= gb * 1e9 }))
    .sort((a, b) => b.fits - a.fits || score(b) - score(a) || a.bytes - b.bytes);
}
