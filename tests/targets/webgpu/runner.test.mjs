// Unit tests of the runner against a device that only writes down what it is asked. Run by test_webgpu_node.py.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

import { difference, readNpz } from "../../../targets/webgpu/site/golden.mjs";
import { load } from "../../../targets/webgpu/site/runner.mjs";

const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const WEIGHTS = new Uint8Array(256).fill(7);
const CODE = "//#\nfn main() {}\n";

const plan = () => ({
  format: 1,
  byRow: true,
  inputs: [{ name: "ids", dtype: "int64", shape: [1, 4], stored: "int32", buffer: 0 }],
  outputs: [{ name: "y", dtype: "float16", shape: [1, 3], stored: "float16", buffer: 1 }],
  weights: [{ bytes: 256, files: [{ file: "weights-0.bin", bytes: 256, sha256: sha256(WEIGHTS) }] }],
  constants: [[0, 0, 256]],
  kernels: ["wrr"],
  launches: [[0, [1, 1, 1], [1, 0, -1]], [0, [1, 1, 1], [1, 0, -1]]],
  variants: [
    { features: ["shader-f16"], float16: "float16", limits: { maxBufferSize: 256 }, buffers: [16, 8], code: { file: "kernels.wgsl", sha256: sha256(CODE) } },
    { features: [], float16: "float32", limits: { maxBufferSize: 256 }, buffers: [16, 12], code: { file: "kernels.wgsl", sha256: sha256(CODE) } },
  ],
});

/** Serve `files` to fetch(). */
function serve(files) {
  const asked = [];
  globalThis.fetch = async (url) => {
    const name = new URL(url).pathname.split("/").at(-1);
    asked.push(name);
    return files[name] === undefined ? new Response("", { status: 404 }) : new Response(files[name]);
  };
  return asked;
}

/** A GPU whose buffers hold zeros. */
function fakeGpu({ features = [], limits = { maxBufferSize: 1 << 20 } } = {}) {
  const log = { devices: 0, buffers: [], groups: 0, submits: 0, writes: [], lose: [] };
  const gpu = { requestAdapter: async () => ({ features: new Set(features), limits, info: { vendor: "nobody" }, requestDevice }) };
  async function requestDevice() {
    log.devices++;
    let lost;
    const gone = new Promise((resolve) => { lost = resolve; });
    log.lose.push(() => lost({ reason: "unknown" }));
    const encoder = { beginComputePass: () => ({ setPipeline() {}, setBindGroup() {}, dispatchWorkgroups() {}, end() {} }), copyBufferToBuffer() {}, finish: () => ({}) };
    return {
      lost: gone, pushErrorScope() {}, popErrorScope: async () => null, destroy() {},
      createBuffer: (what) => { log.buffers.push(what.size); return { ...what, mapAsync: async () => {}, getMappedRange: () => new ArrayBuffer(what.size), unmap() {} }; },
      createBindGroupLayout: (what) => what, createPipelineLayout: (what) => what, createShaderModule: (what) => what,
      createComputePipelineAsync: async () => ({ getBindGroupLayout: () => ({}) }),
      createBindGroup: () => { log.groups++; return {}; },
      createCommandEncoder: () => encoder,
      queue: { writeBuffer: (buffer, at, data) => log.writes.push(data), submit: () => log.submits++ },
    };
  }
  return { gpu, log };
}

const files = (table = plan()) => ({ "plan.json": JSON.stringify(table), "kernels.wgsl": CODE, "weights-0.bin": WEIGHTS });
const BASE = "http://localhost/build/";
const IDS = new BigInt64Array([1n, -2n, 3n, 4n]);
const code = (wanted) => (error) => error.code === wanted;

test("no adapter, missing features and limits that are too small are told before anything is made", async () => {
  serve(files());
  await assert.rejects(load(BASE, { gpu: { requestAdapter: async () => null } }), code("no-adapter"));
  const small = fakeGpu({ limits: { maxBufferSize: 255 } });
  await assert.rejects(load(BASE, { gpu: small.gpu }), (error) => error.code === "no-limit" && /maxBufferSize 255 instead of 256/.test(error.message));
  const half = plan();
  half.variants.length = 1;
  serve(files(half));
  const plain = fakeGpu();
  await assert.rejects(load(BASE, { gpu: plain.gpu }), code("no-feature"));
  assert.deepEqual([small.log.devices, plain.log.devices], [0, 0]);
});

test("without a GPU the build for onnxruntime-web runs on the CPU, where that is asked for, and for nothing else", async (t) => {
  serve(files());
  const folder = await mkdtemp(join(tmpdir(), "polycast-"));
  t.after(() => rm(folder, { recursive: true }));
  await mkdir(join(folder, "other"));
  await writeFile(join(folder, "other", "runner.mjs"), "export const load = async (base, options) => ({ base: base.href, ...options });");
  const gpu = { requestAdapter: async () => null };
  const other = pathToFileURL(join(folder, "other")).href;
  for (const fallback of [other, `${other}/`, new URL(`${other}/`)]) {
    const model = await load(BASE, { gpu, fallback, onProgress: 7 });
    assert.deepEqual([model.base, model.device, model.onProgress], [`${other}/`, "wasm", 7]);
  }
  await assert.rejects(load(BASE, { gpu }), code("no-adapter"));
  serve({ ...files(), "kernels.wgsl": "changed" });
  await assert.rejects(load(BASE, { gpu: fakeGpu().gpu, fallback: other }), code("bad-file"));
});

test("the variant is chosen by what the adapter has", async () => {
  serve(files());
  const [half, plain] = [fakeGpu({ features: ["shader-f16"] }), fakeGpu()];
  await load(BASE, { gpu: half.gpu });
  await load(BASE, { gpu: plain.gpu });
  assert.deepEqual(half.log.buffers.slice(0, 2), [16, 8]);
  assert.deepEqual(plain.log.buffers.slice(0, 2), [16, 12]);
});

test("a run is one submit, and makes nothing", async () => {
  serve(files());
  const { gpu, log } = fakeGpu();
  const model = await load(BASE, { gpu });
  const made = [log.buffers.length, log.groups];
  assert.equal(log.groups, 2);
  await model.run({ ids: IDS });
  await model.run({ ids: IDS });
  assert.equal(log.submits, 2);
  assert.deepEqual([log.buffers.length, log.groups], made);
});

test("64-bit integers cross the boundary as 32-bit ones", async () => {
  serve(files());
  const { gpu, log } = fakeGpu();
  const model = await load(BASE, { gpu });
  await model.run({ ids: IDS });
  assert.deepEqual([...log.writes.at(-1)], [1, -2, 3, 4]);
  await assert.rejects(model.run({ ids: new BigInt64Array([0n, 0n, 0n, 2n ** 31n]) }), /beyond 32 bits/);
});

test("several rows are several runs, and inputs that do not fit are named", async () => {
  serve(files());
  const { gpu, log } = fakeGpu();
  const model = await load(BASE, { gpu });
  const [found] = await model.call({ ids: new BigInt64Array(8) });
  assert.deepEqual(found.shape, [2, 3]);
  assert.equal(log.submits, 2);
  await assert.rejects(model.run({}), /input ids is int64\[1,4\], and is missing/);
  await assert.rejects(model.run({ ids: new BigInt64Array(5) }), /not 5 numbers/);
  await assert.rejects(model.run({ ids: new BigInt64Array(0) }), /not 0 numbers/);
  await assert.rejects(model.run({ ids: new Int32Array(4) }), /not Int32Array/);
});

test("where no row was split off a batch, there is one run", async () => {
  serve(files({ ...plan(), byRow: false }));
  const { gpu } = fakeGpu();
  await assert.rejects((await load(BASE, { gpu })).run({ ids: new BigInt64Array(8) }), /not 8 numbers/);
});

test("a lost device is replaced at the next run, weights and all", async () => {
  serve(files());
  const { gpu, log } = fakeGpu();
  const model = await load(BASE, { gpu });
  const written = log.writes.length;
  log.lose[0]();
  await new Promise((resolve) => setTimeout(resolve));
  await model.run({ ids: IDS });
  assert.equal(log.devices, 2);
  assert.equal(log.writes.length, 2 * written + 1);
});

test("damaged, short and missing files are refused", async () => {
  const { gpu } = fakeGpu();
  serve({ ...files(), "weights-0.bin": new Uint8Array(256) });
  await assert.rejects(load(BASE, { gpu }), /sha256/);
  serve({ ...files(), "weights-0.bin": new Uint8Array(9) });
  await assert.rejects(load(BASE, { gpu }), /ends after 9 of 256 bytes/);
  serve({ ...files(), "weights-0.bin": undefined });
  await assert.rejects(load(BASE, { gpu }), code("bad-file"));
  serve({ ...files(), "kernels.wgsl": "//#\n" });
  await assert.rejects(load(BASE, { gpu }), code("bad-file"));
  serve({ ...files(), "plan.json": JSON.stringify({ ...plan(), format: 99 }) });
  await assert.rejects(load(BASE, { gpu }), code("bad-plan"));
});

test("weights are fetched once, and a kept copy that is damaged is fetched again", async () => {
  const kept = new Map();
  globalThis.caches = { open: async () => ({
    match: async (key) => kept.get(String(key))?.clone(), keys: async () => [...kept.keys()].map((url) => ({ url })),
    put: async (key, response) => { kept.set(String(key), response); }, delete: async (key) => kept.delete(String(key.url ?? key)),
  }) };
  const asked = serve(files());
  const count = () => asked.filter((name) => name === "weights-0.bin").length;
  await load(BASE, { gpu: fakeGpu().gpu });
  await load(BASE, { gpu: fakeGpu().gpu });
  assert.equal(count(), 1);
  for (const key of kept.keys()) kept.set(key, new Response(new Uint8Array(256)));
  await load(BASE, { gpu: fakeGpu().gpu });
  assert.equal(count(), 2);
  const other = plan();
  const [changed] = other.weights[0].files;
  changed.sha256 = sha256(new Uint8Array(256).fill(8));
  serve({ ...files(other), "weights-0.bin": new Uint8Array(256).fill(8) });
  await load(BASE, { gpu: fakeGpu().gpu });
  assert.deepEqual([...kept.keys()], [`${BASE}weights-0.bin?sha256=${changed.sha256}`]);
  delete globalThis.caches;
});

test("progress goes from 0 to 1", async () => {
  serve(files());
  const seen = [];
  await load(BASE, { gpu: fakeGpu().gpu, onProgress: (done) => seen.push(done) });
  assert.deepEqual(seen, [...seen].sort((a, b) => a - b));
  assert.equal(seen.at(-1), 1);
});

test("an archive of numpy is read, and outputs are compared with it", { skip: !process.env.NPZ }, async () => {
  const file = await readFile(process.env.NPZ);
  const tensors = await readNpz(file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength));
  assert.deepEqual(tensors["0/input/x"].shape, [2, 3]);
  assert.deepEqual([...tensors["0/input/x"].data], [0, 1, 2, 3, 4, 5]);
  assert.deepEqual([...tensors["0/input/ids"].data], [5n, -6n]);
  const want = tensors["0/input/x"];
  assert.equal(difference(want, { data: new Float32Array([0, 1, 2, 3, 4, 4]) }), 0.2);
  assert.equal(difference(want, { data: new Float32Array([0, 1, 2, 3, NaN, 5]) }), Infinity);
  assert.equal(difference(tensors["0/input/ids"], { data: new BigInt64Array([5n, 6n]) }), 0.5);
});
