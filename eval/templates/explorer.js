"use strict";
// The images of a class that count, best score first, equal scores by ascending id (rows are in that order).
// Scores are float32 and t is a double, compared as doubles: exactly eval.metrics' strict "score > t".
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const logits = new Float32Array(bytes(data.logit));
const scores = new Float32Array(bytes(data.score));
const truths = new Uint8Array(bytes(data.truth));
const N = data.ids.length;
const POSITIONS = 1000, CURVE_POINTS = 1000, HEIGHT = 160, WIDTH = 800, SAMPLE = 12, IGNORED = 2;
const TRUTH = ["no", "yes", "ignored"];
const $ = (id) => document.getElementById(id);
const percent = (part, whole) => (whole ? ((100 * part) / whole).toFixed(2) + " %" : "n/a");
const PICTURES = Object.keys(data.pictures).length > 0;
const ranked = new Map(), thresholds = {};
let current = null;

// The 95 % interval of a share by Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953: unlike a
// bootstrap's, it has a width where every image above t is right.
function wilson(part, whole) {
  const z2 = 1.959964 ** 2, share = part / whole;
  const middle = share + z2 / (2 * whole), half = Math.sqrt(z2 * (share * (1 - share) / whole + z2 / (4 * whole * whole)));
  return [(middle - half) / (1 + z2 / whole), (middle + half) / (1 + z2 / whole)];
}

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

// A threshold is kept here and not read from its slider: browsers round what a slider holds, and a t that is rounded
// below the highest score has a tail where there is none. What the slider gives is rounded to a few digits, so that
// the t in the field is the t that counts; the ends of the range are exact.
function setRange(id, low, high, value) {
  const digits = high > low ? Math.min(12, Math.max(3, 3 - Math.floor(Math.log10(high - low)))) : 3;
  thresholds[id] = { low, high, digits };
  $(id).max = POSITIONS;
  $(id).disabled = $(id + "-value").disabled = !(high > low);
  set(id, value >= high ? high : Number(value.toFixed(digits)));
}

function set(id, value, typing) {
  const range = thresholds[id];
  range.value = Math.min(range.high, Math.max(range.low, value));
  $(id).value = range.high > range.low ? Math.round((POSITIONS * (range.value - range.low)) / (range.high - range.low)) : 0;
  if (!typing) $(id + "-value").value = String(range.value);
}

function slide(id, position) {
  const { low, high, digits } = thresholds[id];
  const value = low + (position / POSITIONS) * (high - low);
  set(id, position >= POSITIONS ? high : position <= 0 ? low : Number(value.toFixed(digits)));
}

function say(id, result) {
  $(id).setAttribute("aria-valuetext", "logit " + thresholds[id].value + ": " + result);
}

function pictureOf(row) {
  const source = data.pictures[row];
  const picture = document.createElement(source ? "img" : "div");
  if (source) { picture.src = "data:image/webp;base64," + source; picture.alt = ""; } // the caption says what it is
  else { picture.className = "none"; picture.textContent = "no picture"; }
  return picture;
}

function figureOf(row) {
  const figure = document.createElement("figure");
  const word = document.createElement("span");
  word.className = word.textContent = TRUTH[truths[current.at + row]];
  const caption = document.createElement("figcaption");
  caption.append(scores[current.at + row].toFixed(3) + " ", word, document.createElement("br"),
    "logit " + logits[current.at + row].toFixed(3), document.createElement("br"), data.ids[row]);
  if (PICTURES) figure.append(pictureOf(row));
  figure.append(caption);
  return figure;
}

function strip(id, rows) {
  $(id).replaceChildren(...rows.map(figureOf));
  if (!rows.length) $(id).textContent = "none";
}

function showTail() {
  const k = current, t = thresholds.t.value;
  const count = above(k, k.rows, t), hits = k.hits[count];
  say("t", "Tailacc " + percent(hits, count) + ", " + count + " images above");
  $("tailacc").textContent = percent(hits, count);
  $("right").textContent = hits + " right of " + count;
  $("interval").textContent = count
    ? "95 % interval (Wilson): " + wilson(hits, count).map((x) => (100 * x).toFixed(1)).join(" to ") : "";
  $("above").textContent = count;
  $("valid").textContent = k.rows.length;
  $("lowest").textContent = count ? "the lowest has a score of " + scores[k.at + k.rows[count - 1]].toFixed(3) : "";
  $("coverage").textContent = percent(count, k.rows.length);
  const x = k.top > data.threshold ? (WIDTH * (t - data.threshold)) / (k.top - data.threshold) : 0;
  for (const [name, value] of [["x1", x], ["x2", x], ["y1", 0], ["y2", HEIGHT]]) $("mark").setAttribute(name, value);
  const everywhere = above(k, k.all, t); // ignored images are shown too, marked
  strip("just-above", k.all.slice(Math.max(0, everywhere - data.strip), everywhere).reverse());
  strip("just-below", k.all.slice(everywhere, everywhere + data.strip));
}

function drawCurve() {
  const k = current, points = [];
  $("plot").hidden = !(k.top > data.threshold);
  if ($("plot").hidden) return;
  for (let i = 0; i < CURVE_POINTS; i++) {
    const count = above(k, k.rows, data.threshold + (i / CURVE_POINTS) * (k.top - data.threshold));
    points.push(k.hits[count] / count);
  }
  // From the tenth below the lowest point up to 1: a curve between 0.9 and 1 is still a curve.
  const floor = Math.min(0.9, Math.floor(10 * points.reduce((a, b) => Math.min(a, b))) / 10);
  const y = (value) => (HEIGHT * (1 - value)) / (1 - floor);
  const ticks = [1, (1 + floor) / 2, floor];
  $("line").setAttribute("d", "M" + points.map((value, i) => ((WIDTH * i) / CURVE_POINTS).toFixed(1) + " " + y(value).toFixed(1)).join("L"));
  $("grid").setAttribute("d", ticks.map((value) => "M0 " + y(value).toFixed(1) + "H" + WIDTH).join(""));
  $("ticks").replaceChildren(...ticks.map((value) => {
    const tick = document.createElement("span");
    tick.textContent = Number((100 * value).toFixed(1)) + " %";
    tick.style.top = (100 * y(value)) / HEIGHT + "%";
    return tick;
  }));
  $("axis-end").textContent = "t = " + k.top.toFixed(2) + " (highest)";
}

function showBand(moved) {
  const k = current;
  // The threshold that moves pushes the other.
  if (thresholds.t1.value > thresholds.t2.value) set(moved === "t2" ? "t1" : "t2", thresholds[moved].value);
  const t1 = thresholds.t1.value, t2 = thresholds.t2.value;
  const total = k.rows.length, positives = k.hits[total];
  const yes = above(k, k.rows, t2), yesRight = k.hits[yes];
  const notNo = above(k, k.rows, t1), look = notNo - yes, no = total - notNo;
  const noRight = no - (positives - k.hits[notNo]);
  const accuracy = percent(yesRight + look + noRight, total);
  say("t1", "accuracy " + accuracy + ", " + look + " images to look at");
  say("t2", "accuracy " + accuracy + ", " + look + " images to look at");
  $("accuracy").textContent = accuracy;
  $("look").textContent = look;
  $("look-share").textContent = "images, " + percent(look, total) + " of all";
  $("precision").textContent = percent(yesRight, yes);
  $("precision-of").textContent = yesRight + " of " + yes;
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
  const band = k.rows.slice(yes, notNo), shown = Math.min(SAMPLE, look);
  $("sample-note").textContent = look > shown ? shown + " of the " + look + ", evenly from t2 down to t1" : "";
  strip("sample", Array.from({ length: shown }, (_, i) => band[Math.floor(((i + 0.5) * look) / shown)]));
}

function choose(c) {
  current = rank(c);
  const k = current, hasTail = k.top > data.threshold;
  $("counts").textContent = k.hits[k.rows.length] + " positives of " + k.rows.length + " images that count, "
    + (N - k.rows.length) + " ignored";
  $("empty").hidden = hasTail;
  setRange("t", data.threshold, hasTail ? k.top : data.threshold, data.threshold);
  // From a little below the lowest image, so that t1 can leave none to "no", to where none is left to "yes".
  const low = k.bottom - (0.01 * (k.top - k.bottom) || 1), high = Math.max(k.top, data.threshold);
  const middle = Math.max(data.threshold, low);
  setRange("t1", low, high, middle + 0.2 * (low - middle));
  setRange("t2", low, high, middle + 0.2 * (high - middle));
  drawCurve();
  showTail();
  showBand();
}

// Browsers differ in how far a page key goes, so the keys are ours: 1 % an arrow, 10 % a page.
const ONE = POSITIONS / data.steps, TEN = 10 * ONE;
const KEYS = { ArrowRight: ONE, ArrowUp: ONE, ArrowLeft: -ONE, ArrowDown: -ONE, PageUp: TEN, PageDown: -TEN, Home: -POSITIONS, End: POSITIONS };
for (const id of ["t", "t1", "t2"]) {
  const update = () => (id === "t" ? showTail() : showBand(id));
  $(id).addEventListener("input", () => { slide(id, Number($(id).value)); update(); });
  $(id).addEventListener("keydown", (event) => {
    const step = KEYS[event.key];
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    slide(id, Number($(id).value) + step);
    update();
  });
  $(id + "-value").addEventListener("input", (event) => {
    if (event.target.value === "") return;
    set(id, Number(event.target.value), true);
    update();
  });
  $(id + "-value").addEventListener("change", () => set(id, thresholds[id].value)); // shows what a typed value became
}
$("class").addEventListener("change", (event) => choose(Number(event.target.value)));
const first = data.classes.findIndex((_, c) => rank(c).top > data.threshold && rank(c).hits.at(-1) > 0);
$("class").value = Math.max(0, first);
choose(Number($("class").value));
