// Drawing: Plotly's pictures and the tables.
const colours = ["#7b2d8e", "#2ca25f", "#d95f0e", "#4c78a8", "#8c8c8c", "#b8860b", "#c2185b", "#00838f", "#5d4037", "#3a0ca3", "#689f38", "#ff7043", "#455a64"];
const options = { displayModeBar: false, responsive: true };
const element = (id) => document.getElementById(id);
const narrow = () => window.innerWidth < 600;

function layout(title, across, up, more = {}) {
  return {
    title: { text: title, font: { size: 14 } }, margin: { l: 54, r: 12, t: 34, b: 46 }, font: { family: "system-ui, sans-serif", size: 12 },
    xaxis: { title: { text: across }, gridcolor: "#eceff1" }, yaxis: { title: { text: up }, gridcolor: "#eceff1" },
    legend: narrow() ? { orientation: "h", y: -0.25 } : {}, hovermode: "closest", paper_bgcolor: "#fff", plot_bgcolor: "#fff", ...more,
  };
}

function drawFront(set, methods, front) {
  const families = [...new Set(set.methods.map((method) => method.family))];
  const traces = families.map((family, i) => {
    const own = set.methods.filter((method) => method.family === family && valueOf(method, state.across) !== null && valueOf(method, state.up) !== null);
    const inside = new Set(methods);
    return {
      type: "scatter", mode: "markers", name: family, x: own.map((m) => valueOf(m, state.across)), y: own.map((m) => valueOf(m, state.up)),
      text: own.map((m) => m.name), customdata: own.map((m) => m.name), hovertemplate: "%{text}<br>%{x}, %{y}<extra></extra>",
      marker: {
        color: colours[i % colours.length], size: own.map((m) => (front.has(m.name) ? 13 : 8)), opacity: own.map((m) => (inside.has(m) ? 0.95 : 0.15)),
        symbol: own.map((m) => (front.has(m.name) ? "star" : m.form === "published" ? "circle-open" : "circle")),
      },
    };
  }).filter((trace) => trace.x.length);
  Plotly.react("front-plot", traces, layout("", labelOf(state.across, set), labelOf(state.up, set)), options);
}

function drawMethod(set, method, beside) {
  const pair = [method, beside].filter((each) => each && each.curves);
  const lines = pair.flatMap((each, i) => {
    const many = each.rows.map(([, curve]) => ({
      type: "scatter", mode: "lines", y: curve, line: { width: 1, color: colours[i] }, opacity: 0.25, showlegend: false, hoverinfo: "skip",
    }));
    return [...many.slice(0, 12), { type: "scatter", mode: "lines", name: each.name, y: each.curves.psnr_db, line: { width: 2.5, color: colours[i] } }];
  });
  Plotly.react("curve-plot", lines, layout("PSNR to exact, frame by frame (thin: single videos)", "frame", "dB"), options);
  const phases = ["denoise", "encode", "decode"];
  const bars = pair.flatMap((each, i) => ["peak_bytes", "plateau_bytes"].map((what, j) => ({
    type: "bar", name: `${each.name}, ${what === "peak_bytes" ? "peak" : "plateau"}`, x: phases.filter((p) => each.memory[p]),
    y: phases.filter((p) => each.memory[p]).map((p) => each.memory[p][what] / 1e6), marker: { color: colours[i], opacity: j ? 0.5 : 1 },
  })));
  Plotly.react("memory-plot", bars, layout("Memory by phase", "", "MB", { barmode: "group", showlegend: false }), options);
  const names = [...new Set(pair.flatMap((each) => Object.keys(each.components)))];
  const parts = names.map((name, i) => ({
    type: "bar", name, x: pair.map((each) => each.name), y: pair.map((each) => (each.components[name] || 0) / 1e6), marker: { color: colours[(i + 2) % colours.length] },
  }));
  Plotly.react("bytes-plot", parts, layout("Cache at the end by component", "", "MB", { barmode: "stack" }), options);
  const windows = pair.map((each, i) => ({
    type: "scatter", mode: "lines+markers", name: each.name, x: each.windows.map(([a, b]) => `${a} to ${b}`), y: each.window_psnr, line: { color: colours[i] },
  }));
  Plotly.react("window-plot", windows, layout("Drift: PSNR of each window", "frames", "dB"), options);
}

function cell(row, text, head = false) {
  const made = document.createElement(head ? "th" : "td");
  made.textContent = text;
  row.append(made);
}

function fillTable(table, heads, rows, click) {
  const head = document.createElement("thead"), body = document.createElement("tbody"), line = document.createElement("tr");
  heads.forEach((text) => cell(line, text, true));
  head.append(line);
  for (const each of rows) {
    const row = document.createElement("tr");
    row.className = each.className || "";
    row.dataset.name = each.name;
    each.cells.forEach((text) => cell(row, text));
    if (click) row.addEventListener("click", () => click(each.name));
    body.append(row);
  }
  table.replaceChildren(head, body);
}

function fillSelect(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value, false, String(value) === String(chosen))));
}

function fillList(list, texts) {
  list.replaceChildren(...texts.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
}
