// The controls, and what each of them changes.
let shownMethods = [], playing = false;

function methodNamed(name) { return currentSet().methods.find((method) => method.name === name); }

function chooseSet() {
  const set = currentSet(), keys = known(set);
  element("conditions").textContent = set.about;
  const missing = Object.entries(set.missing || {}).map(([name, why]) => `${name} is not measured: ${why}`);
  fillList(element("notes"), [...(set.notes || []), ...missing]);
  const axes = keys.map((key) => [key, labelOf(key, set)]);
  if (!keys.includes(state.across)) state.across = keys.includes("compression") ? "compression" : keys[0];
  if (!keys.includes(state.up)) state.up = keys.includes("psnr") ? "psnr" : keys[keys.length - 1];
  fillSelect(element("across"), axes, state.across);
  fillSelect(element("up"), axes, state.up);
  const names = set.methods.map((method) => [method.name, method.name]);
  if (!methodNamed(state.chosen)) state.chosen = (set.methods.find((method) => method.name !== set.exact) || set.methods[0]).name;
  if (!methodNamed(state.beside)) state.beside = set.baseline && methodNamed(set.baseline) ? set.baseline : "";
  fillSelect(element("chosen"), names, state.chosen);
  fillSelect(element("beside"), [["", "nothing"], ...names], state.beside);
  const peaks = set.methods.map((method) => valueOf(method, "peak")).filter((value) => value !== null);
  const most = peaks.length ? Math.ceil(Math.max(...peaks)) : 1, slider = element("memory");
  Object.assign(slider, { min: 0, max: most, step: Math.max(0.01, most / 200) });
  slider.value = most;
  state.memory = Infinity;
  const ratios = set.methods.map((method) => valueOf(method, "compression")).filter((value) => value !== null);
  element("ratio").max = Math.max(2, Math.ceil(10 * Math.max(1, ...ratios)) / 10);
  fillSelect(element("case"), set.cases.map((each, i) => [i, `${each.prompt}, seed ${each.seed}`]), 0);
  state.case = 0;
  shownMethods = [set.exact, state.chosen, state.beside].filter((name, i, all) => name && all.indexOf(name) === i);
  listWhich();
  limit();
  method();
  stage();
  card();
}

function limit() {
  const set = currentSet(), inside = set.methods.filter((method) => allowed(method, set));
  element("drop-value").textContent = state.drop >= 1 ? "any" : state.drop.toFixed(2);
  element("ratio-value").textContent = `${state.ratio.toFixed(1)} times`;
  element("memory-value").textContent = state.memory === Infinity ? "any" : `${state.memory.toFixed(1)} MB`;
  element("left").textContent = `${inside.length} of ${set.methods.length} methods are within the limits`;
  const keys = data.fronts[state.objectives], used = keys.filter((key) => known(set).includes(key));
  const front = frontOf(inside, keys);
  element("front-text").textContent = `Stars: ${front.size} methods that no other beats in ${used.map((key) => labelOf(key, set)).join("; ")}.`
    + (used.length < keys.length ? ` Not measured, so left out: ${keys.filter((key) => !used.includes(key)).map((key) => labelOf(key, set)).join("; ")}.` : "");
  drawFront(set, inside, front);
  rank(set, inside, front);
}

function rank(set, inside, front) {
  const order = data.orders[state.order], present = known(set);
  const used = order.filter((key) => present.includes(key));
  element("rank-text").textContent = `By ${used.map((key) => labelOf(key, set)).join(", then ")}; tinted: on the front above. Click a row for its page.`;
  const columns = [...used, ...present.filter((key) => !used.includes(key))];
  const rows = ranked(inside, order).map((each, i) => ({
    name: each.name, className: [front.has(each.name) ? "best" : "", each.name === state.chosen ? "chosen" : ""].join(" ").trim(),
    cells: [i + 1, each.name, ...columns.map((key) => shownValue(key, valueOf(each, key)))],
  }));
  fillTable(element("ranking"), ["", "method", ...columns.map((key) => labelOf(key, set))], rows, pick);
}

function pick(name) {
  state.chosen = name;
  element("chosen").value = name;
  for (const row of element("ranking").tBodies[0].rows) row.classList.toggle("chosen", row.dataset.name === name);
  const set = currentSet();
  shownMethods = [set.exact, state.chosen, state.beside].filter((each, i, all) => each && all.indexOf(each) === i);
  listWhich();
  method();
  stage();
}

function method() {
  const set = currentSet(), chosen = methodNamed(state.chosen), against = chosen.against;
  const recommended = Object.entries(data.orders).filter(([, order]) => ranked(set.methods.filter((each) => each.name !== set.exact), order)[0] === chosen).map(([name]) => `first by ${name}`);
  fillList(element("cautions"), [...recommended, ...chosen.cautions.map((text) => `Caution: ${text}`)]);
  const paired = against && set.baseline !== chosen.name
    ? ` Against ${set.baseline}, paired: ${against.mean} dB (95 % from ${against.low} to ${against.high}), better ${against.better} and worse ${against.worse} times, by chance with probability ${against.chance}.` : "";
  element("method-text").textContent = `${chosen.family}; ${chosen.cases} ${set.published ? "prompt" : "video"}${chosen.cases === 1 ? "" : "s"}.${paired} ${chosen.remarks.join("; ")}`;
  drawMethod(set, chosen, state.beside && state.beside !== chosen.name ? methodNamed(state.beside) : null);
}

function listWhich() {
  element("which").replaceChildren(...currentSet().methods.map((each) => {
    const label = document.createElement("label"), box = Object.assign(document.createElement("input"), { type: "checkbox", checked: shownMethods.includes(each.name), value: each.name });
    box.addEventListener("change", () => {
      shownMethods = box.checked ? [...shownMethods, each.name] : shownMethods.filter((name) => name !== each.name);
      stage();
    });
    label.append(box, each.name);
    return label;
  }));
}

function stage() {
  const set = currentSet(), stage = element("stage");
  pause();
  const lacking = [];
  stage.replaceChildren(...shownMethods.flatMap((name) => {
    const address = films[`${set.id}|${name}|${state.case}`];
    if (!address) { lacking.push(name); return []; }
    const figure = document.createElement("figure"), video = Object.assign(document.createElement("video"), { src: address, muted: true, playsInline: true, preload: "auto" });
    video.dataset.name = name;
    figure.append(video, Object.assign(document.createElement("figcaption"), { textContent: name }));
    return [figure];
  }));
  element("seek").value = 0;
  element("moment").textContent = "";
  element("videos-text").textContent = (lacking.length ? `Not in this file: ${lacking.join(", ")}. ` : "") + (data.videos_left ? `${data.videos_left} videos are in the folder videos/ only, for the size of this file.` : "");
}

const videos = () => [...element("stage").querySelectorAll("video")];

function pause() { playing = false; element("play").textContent = "Play"; videos().forEach((video) => video.pause()); }

// All at one moment: the first leads, the others are set where they stray by more than half a frame.
function follow() {
  if (!playing) return;
  const [lead, ...others] = videos();
  if (!lead || lead.ended) { pause(); return; }
  for (const video of others) if (Math.abs(video.currentTime - lead.currentTime) > 0.05) video.currentTime = lead.currentTime;
  element("seek").value = Math.round(1000 * lead.currentTime / (lead.duration || 1));
  element("moment").textContent = `${lead.currentTime.toFixed(1)} s`;
  requestAnimationFrame(follow);
}

function play() {
  if (playing) { pause(); return; }
  const all = videos();
  if (!all.length) return;
  const start = all[0].ended ? 0 : all[0].currentTime;
  playing = true;
  element("play").textContent = "Pause";
  Promise.all(all.map((video) => { video.currentTime = start; return video.play(); })).then(() => requestAnimationFrame(follow), pause);
}

function seek() {
  pause();
  const share = element("seek").value / 1000;
  for (const video of videos()) video.currentTime = share * (video.duration || 0);
  element("moment").textContent = videos().length ? `${(share * (videos()[0].duration || 0)).toFixed(1)} s` : "";
}

function card() {
  const gb = Number(element("gb").value), seconds = Number(element("seconds").value), rows = fitting(gb, seconds);
  const fits = rows.filter((row) => row.fits), best = fits[0];
  element("card-answer").textContent = best
    ? `Take ${best.name}: ${(best.bytes / 1e9).toFixed(1)} GB for ${seconds} s${best.psnr === null ? "" : `, ${best.psnr.toFixed(1)} dB to exact on ${currentSet().name}`}.`
    : `Nothing here fits ${seconds} s into ${gb} GB; a shorter video, or offload cpu (qvg plan), will.`;
  fillTable(element("card-table"), ["", "method", "GB", "PSNR, dB", "SSIM"], rows.map((row) => ({
    name: row.name, className: row.fits ? "best" : "",
    cells: [row.fits ? "fits" : "", row.name, (row.bytes / 1e9).toFixed(1), row.psnr === null ? "–" : row.psnr.toFixed(1), row.ssim === null ? "–" : row.ssim.toFixed(3)],
  })));
}

function on(id, event, change) { element(id).addEventListener(event, () => change(element(id).value)); }

// A slider speaks many times a second; it is heard once a frame.
function onceAFrame(action) {
  let waiting = false;
  return () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; action(); }); } };
}

element("title").textContent = data.title;
element("about").textContent = data.about;
element("card-text").textContent = data.cards.about;
state.objectives = Object.keys(data.fronts)[0];
state.order = Object.keys(data.orders)[0];
fillSelect(element("set"), data.sets.map((set, i) => [i, set.name]), 0);
fillSelect(element("objectives"), Object.keys(data.fronts).map((name) => [name, name]), state.objectives);
fillSelect(element("order"), Object.keys(data.orders).map((name) => [name, name]), state.order);
fillSelect(element("gb"), data.cards.cards_gb.map((gb) => [gb, `${gb} GB`]), 12);
fillSelect(element("seconds"), data.cards.seconds.map((seconds) => [seconds, `${seconds} s`]), 30);
const limitSoon = onceAFrame(limit);
on("set", "change", (value) => { state.set = Number(value); chooseSet(); });
on("drop", "input", (value) => { state.drop = Number(value); limitSoon(); });
on("ratio", "input", (value) => { state.ratio = Number(value); limitSoon(); });
on("memory", "input", (value) => { state.memory = Number(value) >= Number(element("memory").max) ? Infinity : Number(value); limitSoon(); });
element("forms").addEventListener("change", () => { state.forms = element("forms").checked; limit(); });
for (const name of ["objectives", "across", "up", "order"]) on(name, "change", (value) => { state[name] = value; limit(); });
on("chosen", "change", pick);
on("beside", "change", (value) => { state.beside = value; pick(state.chosen); });
on("case", "change", (value) => { state.case = Number(value); stage(); });
element("play").addEventListener("click", play);
on("seek", "input", seek);
on("gb", "change", card);
on("seconds", "change", card);
chooseSet();
element("front-plot").on("plotly_click", (event) => pick(event.points[0].customdata));
