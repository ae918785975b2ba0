// @ts-check
/**
 * Runs a model on WebGPU: compiled kernels, a fixed list of launches, weights. No dependencies, no WebAssembly.
 *
 *     import { load } from "./runner.mjs";
 *     const model = await load(new URL("./", import.meta.url), { onProgress: (done) => bar.value = done });
 *     const { logits } = await model.run({ image: new Float32Array(64) });
 *
 * @typedef {Float32Array | Int32Array | Uint32Array | BigInt64Array | Int8Array | Uint8Array | Uint16Array} Numbers
 * @typedef {{ name: string, dtype: string, shape: number[], stored: string, buffer: number }} Port
 * @typedef {{ bytes: number, files: { file: string, bytes: number, sha256: string }[] }} Weights
 * @typedef {[kernel: number, grid: [number, number, number], operands: number[]]} Launch
 * @typedef {{
 *   features: string[], float16: string, limits: Record<string, number>, buffers: number[],
 *   code: { file: string, sha256: string },
 * }} Variant  float16: the dtype that stands for it in buffers.
 * @typedef {{
 *   format: number, byRow: boolean, inputs: Port[], outputs: Port[], weights: Weights[], kernels: string[], launches: Launch[],
 *   constants: [buffer: number, offset: number, bytes: number][], variants: Variant[],
 * }} Plan
 * @typedef {{
 *   gpu?: any, device?: string, onProgress?: (done: number, what: string) => void, fallback?: string | URL,
 * }} Options  onProgress: done is a share from 0 to 1; fallback: the folder of a build for onnxruntime-web, seen from
 *   this one, which runs on the CPU where there is no GPU that the model fits.
 */

import { fetchWeights, fetchText } from "./files.mjs";

const FORMAT = 1;
const READ = 1, COPY_FROM = 4, COPY_TO = 8, STORAGE = 128; // GPUMapMode and GPUBufferUsage, which a worker may lack

/** What goes wrong, with a `code` for programs and a `hint` for people. */
export class ModelError extends Error {
  /** @param {string} code @param {string} message @param {string} [hint] */
  constructor(code, message, hint = "") {
    super(hint ? `${message}. ${hint}` : message);
    this.name = "ModelError";
    this.code = code;
    this.hint = hint;
  }
}

/**
 * Load the build in the folder `base`.
 * @param {string | URL} base
 * @param {Options} [options]
 * @returns {Promise<Model>}
 * @throws {ModelError} no-adapter, no-feature, no-limit, bad-plan, bad-file, bad-kernel
 */
export async function load(base, options = {}) {
  const folder = new URL(base, globalThis.location?.href);
  try {
    const plan = /** @type {Plan} */ (JSON.parse(await fetchText(new URL("plan.json", folder))));
    if (plan.format !== FORMAT) {
      throw new ModelError("bad-plan", `plan.json has format ${plan.format}, this runner reads ${FORMAT}`);
    }
    const model = new Model(plan, folder, options);
    await model.open();
    return model;
  } catch (error) {
    const missing = ["no-adapter", "no-feature", "no-limit"].includes(/** @type {any} */ (error).code);
    if (!missing || !options.fallback) throw error;
    const other = new URL(`${options.fallback}`.replace(/\/*$/, "/"), folder); // a folder, however it is spelled
    return (await import(new URL("runner.mjs", other).href)).load(other, { ...options, device: "wasm" });
  }
}

/** A model on a device. Runs are done one after the other; a lost device is replaced at the next run. */
export class Model {
  /** @param {Plan} plan @param {URL} folder @param {Options} options */
  constructor(plan, folder, options) {
    this.plan = plan;
    this.folder = folder;
    this.options = options;
    this.inputs = plan.inputs;
    this.outputs = plan.outputs;
    this.variant = plan.variants[0];
    /** What it runs on: `software` is true for an adapter that is no GPU. */
    this.adapter = { name: "", software: false };
    /** @type {any} */ this.device = null;
    /** @type {Promise<any>} */ this.last = Promise.resolve();
  }

  /** Get a device, check it, put the weights on it, make every pipeline and bind group. */
  async open() {
    const { plan, folder, options } = this;
    const told = options.onProgress ?? (() => {});
    const device = await this.acquire();
    const { buffers: sizes, code: { file, sha256 } } = this.variant;
    const code = await fetchText(new URL(file, folder), sha256);
    device.pushErrorScope("validation");
    device.pushErrorScope("out-of-memory");
    const buffers = sizes.map((size) => device.createBuffer({ size, usage: STORAGE | COPY_FROM | COPY_TO }));
    const total = plan.weights.reduce((sum, each) => sum + each.bytes, 0) || 1;
    let done = 0;
    const weights = plan.weights.map(({ bytes }) => device.createBuffer({ size: bytes, usage: STORAGE | COPY_FROM | COPY_TO }));
    const pipelines = makePipelines(device, plan, code.split("//#\n").slice(1));
    for (const [number, { files }] of plan.weights.entries()) {
      let offset = 0;
      for (const file of files) {
        const data = await fetchWeights(folder, file, (bytes) => told((done + bytes) / total, file.file));
        device.queue.writeBuffer(weights[number], offset, data);
        offset += file.bytes;
        done += file.bytes;
      }
    }
    told(1, "kernels");
    const made = await pipelines;
    this.launches = plan.launches.map(([kernel, grid, operands]) => ({
      pipeline: made[kernel],
      grid,
      group: device.createBindGroup({
        layout: made[kernel].getBindGroupLayout(0),
        entries: operands.map((operand, binding) => ({ binding, resource: resource(plan, operand, buffers, weights) })),
      }),
    }));
    this.buffers = buffers;
    this.weights = weights;
    this.reads = this.outputs.map((port) => device.createBuffer({ size: bytesOf(port), usage: READ | COPY_TO }));
    const errors = [await device.popErrorScope(), await device.popErrorScope()].filter(Boolean);
    if (errors.length) throw new ModelError("bad-kernel", `WebGPU refuses this build: ${errors[0].message}`);
    device.lost.then(() => { if (this.device === device) this.device = null; });
    this.device = device;
  }

  /** Ask for an adapter that has what the plan needs, before anything is allocated. */
  async acquire() {
    const gpu = this.options.gpu ?? /** @type {any} */ (globalThis.navigator)?.gpu;
    const adapter = await gpu?.requestAdapter({ powerPreference: "high-performance" });
    if (!adapter) {
      throw new ModelError("no-adapter", gpu ? "this browser has WebGPU, but no adapter for it" : "no WebGPU here",
        "Update the browser or the graphics driver; a page needs https or localhost. README.md says what runs on the CPU");
    }
    const variants = this.plan.variants.filter((each) => each.features.every((name) => adapter.features.has(name)));
    if (!variants.length) {
      throw new ModelError("no-feature", `this adapter has no ${this.variant.features.join(", ")}`, "Use the fp32 build");
    }
    this.variant = variants[0];
    const { features, limits } = this.variant;
    const narrow = (/** @type {Port} */ port) => (port.stored === "float16" && port.buffer >= 0 ? { ...port, stored: this.variant.float16 } : port);
    this.inputs = this.plan.inputs.map(narrow);
    this.outputs = this.plan.outputs.map(narrow);
    const lacking = Object.entries(limits).filter(([name, need]) => !(adapter.limits[name] >= need));
    if (lacking.length) {
      const said = lacking.map(([name, need]) => `${name} ${adapter.limits[name]} instead of ${need}`);
      throw new ModelError("no-limit", `this adapter is too small for the model: ${said.join(", ")}`);
    }
    const info = adapter.info ?? {};
    const name = [info.vendor, info.architecture, info.description].filter(Boolean).join(" ");
    const software = info.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false;
    this.adapter = { name, software: software || /swiftshader|llvmpipe|lavapipe|basic render/i.test(name) };
    return adapter.requestDevice({ requiredFeatures: features, requiredLimits: limits });
  }

  /**
   * Run the model: typed arrays by input name to typed arrays by output name. Where the
   * model has a batch and an input holds several rows, all inputs do, and the outputs hold as many.
   * @param {Record<string, Numbers>} feeds
   * @returns {Promise<Record<string, Numbers>>}
   */
  async run(feeds) {
    return Object.fromEntries((await this.call(feeds)).map(({ name, data }) => [name, data]));
  }

  /**
   * As `run`, but gives the outputs in the order of the model, with their shapes.
   * @param {Record<string, Numbers>} feeds
   * @returns {Promise<{ name: string, data: Numbers, shape: number[] }[]>}
   */
  call(feeds) {
    const run = this.last.then(() => this.callRows(feeds));
    this.last = run.catch(() => {});
    return run;
  }

  /** @param {Record<string, Numbers>} feeds */
  async callRows(feeds) {
    const rows = rowsOf(this.plan, feeds);
    const results = this.outputs.map((port) => ({
      name: port.name,
      data: new (arrayOf(port.dtype))(rows * sizeOf(port)),
      shape: rows === 1 ? port.shape : [rows * port.shape[0], ...port.shape.slice(1)],
    }));
    for (let row = 0; row < rows; row++) {
      const given = this.inputs.map((port) => {
        const size = sizeOf(port);
        return toStored(port, feeds[port.name].subarray(row * size, (row + 1) * size));
      });
      for (const [i, words] of (await this.runOnce(given)).entries()) {
        results[i].data.set(fromStored(this.outputs[i], words), row * sizeOf(this.outputs[i]));
      }
    }
    return results;
  }

  /** @param {ArrayBufferView[]} given @returns {Promise<ArrayBuffer[]>} */
  async runOnce(given) {
    for (let attempt = 0; ; attempt++) {
      if (!this.device) await this.open();
      try {
        return await this.submit(given);
      } catch (error) {
        await Promise.race([this.device?.lost, new Promise((resolve) => setTimeout(resolve, 50))]);
        if (this.device || attempt) throw error;
      }
    }
  }

  /** One command buffer, one submit. @param {ArrayBufferView[]} given */
  async submit(given) {
    const { device, plan, buffers, weights, launches, reads, inputs, outputs } = this;
    if (!buffers || !weights || !launches || !reads) throw new ModelError("bad-plan", "the model is not open");
    inputs.forEach((port, i) => device.queue.writeBuffer(buffers[port.buffer], 0, padded(given[i])));
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const { pipeline, grid, group } of launches) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(...grid);
    }
    pass.end();
    outputs.forEach((port, i) => {
      const { buffer, offset = 0 } = resource(plan, port.buffer, buffers, weights);
      encoder.copyBufferToBuffer(buffer, offset, reads[i], 0, bytesOf(port));
    });
    device.queue.submit([encoder.finish()]);
    return Promise.all(reads.map(async (buffer) => {
      await buffer.mapAsync(READ);
      const words = buffer.getMappedRange().slice(0);
      buffer.unmap();
      return words;
    }));
  }

  /** Give the device back. */
  destroy() {
    const device = this.device;
    this.device = null;
    device?.destroy();
  }
}

/** @param {any} device @param {Plan} plan @param {string[]} codes */
async function makePipelines(device, plan, codes) {
  /** @type {Record<string, any>} */ const layouts = {};
  const layoutOf = (/** @type {string} */ access) => layouts[access] ??= device.createPipelineLayout({
    bindGroupLayouts: [device.createBindGroupLayout({
      entries: [...access].map((letter, binding) => (
        { binding, visibility: 4, buffer: { type: letter === "w" ? "storage" : "read-only-storage" } })),
    })],
  });
  return Promise.all(codes.map(async (code, i) => {
    const module = device.createShaderModule({ code });
    try {
      return await device.createComputePipelineAsync({
        layout: layoutOf(plan.kernels[i]), compute: { module, entryPoint: "main" },
      });
    } catch (error) {
      const found = (await module.getCompilationInfo()).messages.filter((/** @type {any} */ m) => m.type === "error");
      const said = found.map((/** @type {any} */ m) => `line ${m.lineNum}: ${m.message}`).join("; ");
      throw new ModelError("bad-kernel", `kernel ${i} does not compile: ${said || error}`);
    }
  }));
}

/** An operand below zero is a constant, which is a part of a buffer of weights. */
function resource(/** @type {Plan} */ plan, /** @type {number} */ operand, /** @type {any[]} */ buffers, /** @type {any[]} */ weights) {
  if (operand >= 0) return { buffer: buffers[operand] };
  const [buffer, offset, size] = plan.constants[-1 - operand];
  return { buffer: weights[buffer], offset, size };
}

/** @type {Record<string, any>} */
const ARRAYS = {
  float32: Float32Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
  int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
  float16: /** @type {any} */ (globalThis).Float16Array ?? Uint16Array, // without it: the bits
};
const arrayOf = (/** @type {string} */ dtype) => ARRAYS[dtype];
const sizeOf = (/** @type {Port} */ port) => port.shape.reduce((product, size) => product * size, 1);
const bytesOf = (/** @type {Port} */ port) => Math.ceil((sizeOf(port) * arrayOf(port.stored).BYTES_PER_ELEMENT) / 4) * 4;

/** Count the rows in `feeds`, and check them. @param {Plan} plan @param {Record<string, Numbers>} feeds */
function rowsOf({ inputs, byRow }, feeds) {
  const counts = inputs.map((port) => {
    const array = feeds[port.name];
    const want = `${port.name} is ${port.dtype}[${port.shape}]`;
    if (!array) throw new ModelError("bad-input", `input ${want}, and is missing`);
    if (!(array instanceof arrayOf(port.dtype))) throw new ModelError("bad-input", `input ${want}, not ${array.constructor.name}`);
    const rows = array.length / sizeOf(port);
    if (rows !== 1 && !(byRow && rows && Number.isInteger(rows))) throw new ModelError("bad-input", `input ${want}, not ${array.length} numbers`);
    return rows;
  });
  if (new Set(counts).size > 1) throw new ModelError("bad-input", `inputs hold ${counts.join(", ")} rows`);
  return counts[0] ?? 1;
}

/** No kernel computes with 64 or 8 bits. @param {Port} port @param {any} array @returns {ArrayBufferView} */
function toStored({ name, dtype, stored }, array) {
  if (dtype === stored) return array;
  const [low, high] = dtype === "uint64" ? [0n, 2n ** 32n] : [-(2n ** 31n), 2n ** 31n];
  if (dtype.endsWith("64") && array.some((/** @type {bigint} */ x) => x < low || x >= high)) {
    throw new ModelError("bad-input", `input ${name} holds a number beyond 32 bits, which WebGPU has not`);
  }
  const number = dtype.endsWith("64") ? Number : (/** @type {number} */ x) => x;
  return arrayOf(stored).from(array, number);
}

/** @param {Port} port @param {ArrayBuffer} words @returns {Numbers} */
function fromStored(port, words) {
  const array = new (arrayOf(port.stored))(words).subarray(0, sizeOf(port));
  if (port.dtype === port.stored) return array;
  return arrayOf(port.dtype).from(array, port.dtype.endsWith("64") ? BigInt : (/** @type {number} */ x) => x);
}

/** WebGPU writes whole words. @param {ArrayBufferView} view @returns {ArrayBufferView} */
function padded(view) {
  if (view.byteLength % 4 === 0) return view;
  const bytes = new Uint8Array(Math.ceil(view.byteLength / 4) * 4);
  bytes.set(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
  return bytes;
}
