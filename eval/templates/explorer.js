"use strict";
// The images of a class that count, best score first, equal scores by ascending id (rows are in that order).
// Scores are float32 and t is a double, compared as doubles: exactly eval.metrics' strict "score > t".
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const logits = new Float32Array(bytes(data.logit));
const scores = new Float32Array(bytes(data.score));
const truths = new Uint8Array(bytes(data.truth));
const N = data.ids.length;
const STEPS = 1000, SHOWN = 6, IGNORED = 2;
const TRUTH = ["no", "yes", "ignored"];
const $ = (id) => document.getElementById(id);
const percent = (part, whole) => (whole ? ((100 * part) / whole).toFixed(2) + " %" : "n/a");
const ranked = new Map();
let current = null;

function rank(c) {
  if (!ranked.has(c)) {
    const at = c * N;
    const all = Array.from({ length: N }, (_, row) => row).sort((a, b) => logits[at + b] - logits[at + a] || a - b);
    const rows = all.filter((row) => truths[at + row] !== IGNORED);
    const hits = [0];
    for (const row of rows) hits.push(hits[hits.length - 1] + truths[at + row]);
    ranked.set(c, { at, all, rows, hits, top: rows.length ? logits[at + rows[0]] : 0,
      bottom: rows.length ? logits[at + rows[rows.length - 1]] : 0 });
  }
  return ranked.get(c);
}

// How many of the rows (descending) score strictly above t.
function above(k, rows, t) {
  let low = 0, high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (logits[k.at + rows[middle]] > t) low = middle + 1;
    else high = middle;
  }
  return low;
}

function setRange(id, low, high, value) {
  const input = $(id);
  // "any" keeps typed values exact; the keys move by the step that is written out below.
  Object.assign(input, { min: low, max: high, step: "any", value });
  input.disabled = !(high > low);
}

function say(id, t) {
  const text = t.toFixed(3);
  $(id + "-value").textContent = text;
  $(id).setAttribute("aria-valuetext", "logit " + text);
}

function strip(id, rows) {
  $(id).replaceChildren(...rows.map((row) => {
    const figure = document.createElement("figure");
    const thumbnail = data.thumbnails[row];
    const picture = document.createElement(thumbnail ? "img" : "div");
    if (thumbnail) { picture.src = "data:image/jpeg;base64," + thumbnail; picture.alt = data.ids[row]; }
    else { picture.className = "none"; picture.textContent = "no picture"; }
    const truth = TRUTH[truths[current.at + row]];
    const word = document.createElement("span");
    word.className = truth;
    word.textContent = truth;
    const caption = document.createElement("figcaption");
    caption.append(logits[current.at + row].toFixed(3) + " (" + scores[current.at + row].toFixed(3) + ") ", word,
      document.createElement("br"), data.ids[row]);
    figure.append(picture, caption);
    return figure;
  }));
  if (!rows.length) $(id).textContent = "none";
}

function showTail() {
  const k = current, t = Number($("t").value);
  const count = above(k, k.rows, t), hits = k.hits[count];
  say("t", t);
  $("tailacc").textContent = percent(hits, count);
  $("right").textContent = hits + " right of " + count;
  $("above").textContent = count;
  $("valid").textContent = k.rows.length;
  $("coverage").textContent = percent(count, k.rows.length);
  const x = k.top > data.threshold ? (800 * (t - data.threshold)) / (k.top - data.threshold) : 0;
  for (const [name, value] of [["x1", x], ["x2", x], ["y1", 0], ["y2", 160]]) $("mark").setAttribute(name, value);
  const everywhere = above(k, k.all, t); // ignored images are shown too, marked
  strip("just-above", k.all.slice(Math.max(0, everywhere - SHOWN), everywhere).reverse());
  strip("just-below", k.all.slice(everywhere, everywhere + SHOWN));
}

function drawCurve() {
  const k = current, points = [];
  for (let i = 0; i < STEPS && k.top > data.threshold; i++) {
    const count = above(k, k.rows, data.threshold + (i / STEPS) * (k.top - data.threshold));
    points.push(((800 * i) / STEPS).toFixed(1) + " " + (158 - (156 * k.hits[count]) / count).toFixed(1));
  }
  $("line").setAttribute("d", points.length ? "M" + points.join("L") : "");
  $("axis-end").textContent = "t = " + k.top.toFixed(2) + " (highest)";
}

function showBand(moved) {
  const k = current;
  let t1 = Number($("t1").value), t2 = Number($("t2").value);
  if (t1 > t2) { // the slider that moves pushes the other
    if (moved === "t2") { t1 = t2; $("t1").value = t1; } else { t2 = t1; $("t2").value = t2; }
  }
  say("t1", t1);
  say("t2", t2);
  const total = k.rows.length, positives = k.hits[total];
  const yes = above(k, k.rows, t2), yesRight = k.hits[yes];
  const notNo = above(k, k.rows, t1), look = notNo - yes, no = total - notNo;
  const noRight = no - (positives - k.hits[notNo]);
  $("accuracy").textContent = percent(yesRight + look + noRight, total);
  $("look").textContent = look;
  $("look-share").textContent = "images, " + percent(look, total) + " of all";
  $("precision").textContent = percent(yesRight, yes);
  $("found").textContent = percent(k.hits[notNo], positives);
  $("found-of").textContent = k.hits[notNo] + " of " + positives;
  $("said-no").textContent = no;
  $("band-look").textContent = look;
  $("said-yes").textContent = yes;
  const cut = above(k, k.rows, data.threshold);
  $("alone").textContent = percent(k.hits[cut] + (total - cut) - (positives - k.hits[cut]), total);
  const parts = $("bar").children;
  [no, look, yes].forEach((count, i) => { parts[i].style.flexGrow = count; });
  $("bar").setAttribute("aria-label", no + " no, " + look + " looked at, " + yes + " yes");
}

function choose(c) {
  current = rank(c);
  const k = current, hasTail = k.top > data.threshold;
  $("counts").textContent = k.hits[k.rows.length] + " positives of " + k.rows.length + " images that count, "
    + (N - k.rows.length) + " ignored";
  $("empty").hidden = hasTail;
  setRange("t", data.threshold, hasTail ? k.top : data.threshold, data.threshold);
  const middle = Math.min(Math.max(data.threshold, k.bottom), k.top);
  setRange("t1", k.bottom, k.top, (k.bottom + middle) / 2);
  setRange("t2", k.bottom, k.top, (k.top + middle) / 2);
  drawCurve();
  showTail();
  showBand();
}

// With step "any" browsers differ in how far a key goes, so the keys are ours: 1 % an arrow, 10 % a page.
const KEYS = { ArrowRight: 0.01, ArrowUp: 0.01, ArrowLeft: -0.01, ArrowDown: -0.01, PageUp: 0.1, PageDown: -0.1, Home: -1, End: 1 };
for (const id of ["t", "t1", "t2"]) {
  const update = () => (id === "t" ? showTail() : showBand(id));
  $(id).addEventListener("input", update);
  $(id).addEventListener("keydown", (event) => {
    const share = KEYS[event.key];
    if (share === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const input = event.target, low = Number(input.min), high = Number(input.max);
    input.value = Math.min(high, Math.max(low, Number(input.value) + share * (high - low)));
    update();
  });
}
$("class").addEventListener("change", (event) => choose(Number(event.target.value)));
choose(Number($("class").value));
