// @ts-check
/** The page of a build: loads the model, runs it on its golden inputs, and says how near it comes and how long it takes. */

import { difference, readNpz } from "./golden.mjs";
import { load } from "./runner.mjs";

/** @typedef {import("./golden.mjs").Tensor} Tensor */

const element = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const here = new URL("./", location.href);
const RUNS = 20;

show().catch((error) => {
  element("title").textContent = "The model does not run here";
  answer(error.message, true);
  /** @type {any} */ (globalThis).verdict = { verified: false, error: error.message, code: error.code ?? "" };
});

async function show() {
  navigator.serviceWorker?.register("sw.js").catch(() => {}); // without it the page works, though not offline
  const manifest = await (await fetch(new URL("manifest.json", here))).json();
  document.title = `${manifest.model.name}: ${manifest.recipe.name}`;
  element("kicker").textContent = `polycast build for ${manifest.target}`;
  element("title").textContent = `${manifest.model.name}, ${manifest.recipe.name}`;
  answer("Fetching the weights.");
  const fallback = new URLSearchParams(location.search).get("fallback") ?? undefined;
  const started = performance.now();
  const model = await load(here, { fallback, onProgress: (done, what) => {
    element("progress").value = done;
    if (what === "kernels") answer("Compiling the kernels.");
  } });
  element("progress").classList.add("done");
  const samples = await golden(manifest);
  answer("Running the golden inputs.");
  let worst = 0, first = 0;
  for (const [i, { feeds, outputs }] of samples.entries()) {
    const found = await model.call(arrays(feeds));
    first ||= performance.now() - started;
    const gaps = found.map((/** @type {any} */ each) => difference(outputs[each.name], each));
    worst = Math.max(worst, ...gaps);
    element("rows").append(sampleRow(i, feeds, found, gaps, manifest.golden.tolerance));
  }
  element("samples").hidden = samples.length === 0;
  const verified = samples.length > 0 && worst <= manifest.golden.tolerance;
  const times = model.adapter.software || !samples.length ? [] : await time(model, arrays(samples[0].feeds));
  tell(manifest, model, { samples: samples.length, worst, verified, times });
  /** @type {any} */ (globalThis).verdict = {
    verified, worst, samples: samples.length, software: model.adapter.software, firstInference: first,
  };
}

/** @param {any} manifest */
async function golden(manifest) {
  if (!manifest.golden.n) return [];
  const tensors = await readNpz(await (await fetch(new URL("golden.npz", here))).arrayBuffer());
  const part = (/** @type {string} */ start) => Object.fromEntries(Object.entries(tensors)
    .filter(([key]) => key.startsWith(start)).map(([key, tensor]) => [key.slice(start.length), tensor]));
  return Array.from({ length: manifest.golden.n }, (_, i) => ({ feeds: part(`${i}/input/`), outputs: part(`${i}/output/`) }));
}

/** A runtime for dynamic shapes reads the shape beside the numbers. @param {Record<string, Tensor>} feeds */
const arrays = (feeds) => Object.fromEntries(Object.entries(feeds)
  .map(([name, { data, shape }]) => [name, Object.assign(data, { shape })]));

/** @param {any} model @param {any} feeds @returns {Promise<number[]>} milliseconds, sorted */
async function time(model, feeds) {
  const times = [];
  for (let i = 0; i < RUNS; i++) {
    const start = performance.now();
    await model.call(feeds);
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b);
}

/** @param {any} manifest @param {any} model @param {any} found */
function tell(manifest, model, { samples, worst, verified, times }) {
  if (!samples) answer("The build runs. It holds no golden inputs to check it on.");
  else if (verified) answer(`The build agrees with the original on all ${samples} golden input${samples > 1 ? "s" : ""}.`);
  else answer("The build does not give here what it gave where it was made.", true);
  const files = Object.entries(manifest.files);
  const bytes = (/** @type {(name: string) => boolean} */ wanted) => files
    .filter(([name]) => wanted(name)).reduce((sum, [, file]) => sum + /** @type {any} */ (file).bytes, 0);
  const weights = bytes((name) => name.startsWith("weights-") || name.endsWith(".onnx"));
  fact("agreement", samples ? percent(worst) : "not run", `largest deviation; allowed ${percent(manifest.golden.tolerance)}`);
  if (model.adapter.software) fact("time", "software adapter", "its time says nothing of a GPU");
  else if (times.length) fact("time", `${times[times.length >> 1].toFixed(2)} ms`, `median of ${times.length} runs, batch as in the golden input`);
  fact("adapter", model.adapter.name || "unnamed", model.adapter.software ? "computes on the CPU" : "hardware");
  fact("weights", size(weights), `${manifest.recipe.name}, kept by the browser`);
}

/** @param {number} i @param {Record<string, Tensor>} feeds @param {any[]} found @param {number[]} gaps @param {number} tolerance */
function sampleRow(i, feeds, found, gaps, tolerance) {
  const row = make("div", "sample");
  const left = make("div"), right = make("div");
  for (const [name, tensor] of Object.entries(feeds)) {
    left.append(make("h3", "", name), picture(tensor), make("small", "", `${tensor.dtype} ${tensor.shape.join(" × ")}`));
  }
  found.forEach((output, j) => {
    const good = gaps[j] <= tolerance;
    right.append(make("h3", "", output.name), bars(output.data));
    const line = make("small", "", `${output.shape.join(" × ")}, `);
    line.append(make("span", good ? "verdict" : "verdict bad", good ? "agrees" : "does not agree"), `, off by ${percent(gaps[j])}`);
    right.append(line);
  });
  row.append(left, right);
  row.setAttribute("aria-label", `golden sample ${i + 1}`);
  return row;
}

/** The five largest values, with their places. @param {ArrayLike<number | bigint>} data */
function bars(data) {
  const places = Array.from({ length: Math.min(data.length, 5000) }, (_, i) => i);
  const top = places.sort((a, b) => Number(data[b]) - Number(data[a])).slice(0, 5);
  const list = make("div", "bars");
  const largest = Math.max(...top.map((i) => Math.abs(Number(data[i]))), 1e-30);
  for (const i of top) {
    const bar = make("i", Number(data[i]) < 0 ? "below" : "");
    bar.style.width = `${(100 * Math.abs(Number(data[i]))) / largest}%`;
    list.append(make("span", "", `${i}`), bar, make("b", "", Number(data[i]).toPrecision(4)));
  }
  return list;
}

/** A tensor as a picture: an image where it looks like one, else its numbers row by row. @param {Tensor} tensor */
function picture({ data, shape }) {
  const sizes = shape.filter((each, i) => i > 0 || each > 1);
  const channelsLast = sizes.length === 3 && [1, 3].includes(sizes[2]) && ![1, 3].includes(sizes[0]);
  const image = sizes.length === 3 && (channelsLast || [1, 3].includes(sizes[0]));
  const count = Math.min(data.length, 1 << 16);
  const width = image ? sizes[channelsLast ? 1 : 2] : Math.min(sizes.at(-1) ?? 1, 256);
  const height = image ? sizes[channelsLast ? 0 : 1] : Math.max(1, Math.floor(count / width));
  const channels = image ? sizes[channelsLast ? 2 : 0] : 1;
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < data.length; i++) {
    low = Math.min(low, Number(data[i]));
    high = Math.max(high, Number(data[i]));
  }
  const pixels = new ImageData(width, height);
  for (let p = 0; p < width * height; p++) {
    for (let c = 0; c < 3; c++) {
      const channel = Math.min(c, channels - 1);
      const value = Number(data[channelsLast ? p * channels + channel : channel * width * height + p]);
      pixels.data[4 * p + c] = (255 * (value - low)) / (high - low || 1);
    }
    pixels.data[4 * p + 3] = 255;
  }
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "the input, darkest where it is smallest");
  return canvas;
}

/** @param {string} kind @param {string} [style] @param {string} [text] */
function make(kind, style = "", text = "") {
  const made = document.createElement(kind);
  made.className = style;
  made.textContent = text;
  return made;
}

/** @param {string} name @param {string} value @param {string} note */
function fact(name, value, note) {
  const group = make("div"), dd = make("dd");
  dd.append(make("b", "", value), note);
  group.append(make("dt", "", name), dd);
  element("facts").append(group);
}

/** @param {string} text @param {boolean} [bad] */
function answer(text, bad = false) {
  element("answer").textContent = text;
  element("answer").classList.toggle("bad", bad);
}

const percent = (/** @type {number} */ share) => (Number.isFinite(share) ? `${(100 * share).toPrecision(2)} %` : "∞");
const size = (/** @type {number} */ bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
