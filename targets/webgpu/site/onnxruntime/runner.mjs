// @ts-check
/**
 * Runs model.onnx with onnxruntime-web, from node_modules beside this file. Same interface as the runner of polycast's
 * own kernels. Never the default import of onnxruntime-web: it gives wrong results without an error for some models.
 *
 * @typedef {{ device?: "webgpu" | "wasm", onProgress?: (done: number, what: string) => void, fallback?: string }} Options
 */

const DIST = "node_modules/onnxruntime-web/dist/";

/** What goes wrong, with a `code` for programs. */
export class ModelError extends Error {
  /** @param {string} code @param {string} message */
  constructor(code, message) {
    super(message);
    this.name = "ModelError";
    this.code = code;
  }
}

/**
 * Load the build in the folder `base`. On a machine without WebGPU it runs on the CPU only where that is asked for:
 * `device: "wasm"`, or `fallback: "wasm"` for where no adapter takes the model.
 * @param {string | URL} base
 * @param {Options} [options]
 */
export async function load(base, options = {}) {
  const folder = new URL(base, globalThis.location?.href);
  const told = options.onProgress ?? (() => {});
  const adapter = options.device === "wasm" ? null : await /** @type {any} */ (navigator).gpu?.requestAdapter();
  if (!adapter && options.device !== "wasm" && options.fallback !== "wasm") {
    throw new ModelError("no-adapter", 'no WebGPU adapter here; fallback: "wasm" runs the model on the CPU');
  }
  const manifest = await (await fetch(new URL("manifest.json", folder))).json();
  const dist = new URL(DIST, folder);
  let ort;
  try {
    ort = await import(new URL("ort.webgpu.bundle.min.mjs", dist).href);
  } catch (error) {
    throw new ModelError("no-runtime", `onnxruntime-web is not beside the page: ${manifest.runtime.needs}`);
  }
  ort.env.wasm.wasmPaths = dist.href;
  ort.env.logLevel = "error";
  told(0, "model.onnx");
  const model = new Uint8Array(await (await fetch(new URL("model.onnx", folder))).arrayBuffer());
  told(1, "kernels");
  const open = (/** @type {string} */ device) => (
    ort.InferenceSession.create(model, { executionProviders: [device], logSeverityLevel: 3 }));
  if (adapter) {
    try {
      return new Model(ort, await open("webgpu"), manifest.signature, adapter);
    } catch (error) {
      if (options.fallback !== "wasm") throw error; // float16 on an adapter without it, above all
    }
  }
  return new Model(ort, await open("wasm"), manifest.signature, null);
}

/** A model in a session of onnxruntime-web. */
class Model {
  /** @param {any} ort @param {any} session @param {any} signature @param {any} adapter */
  constructor(ort, session, signature, adapter) {
    Object.assign(this, { ort, session, signature });
    const { vendor = "", architecture = "", description = "" } = adapter?.info ?? {};
    const name = adapter ? [vendor, architecture, description].filter(Boolean).join(" ") : "wasm";
    this.adapter = { name, software: !adapter || /swiftshader|llvmpipe|lavapipe|basic render/i.test(name) };
    this.last = Promise.resolve();
  }

  /** Typed arrays by name, each with its `shape`, to typed arrays by name. @param {Record<string, any>} feeds */
  async run(feeds) {
    return Object.fromEntries((await this.call(feeds)).map((/** @type {any} */ { name, data }) => [name, data]));
  }

  /** As `run`, in the order of the model, with shapes. @param {Record<string, any>} feeds @returns {Promise<any[]>} */
  call(feeds) {
    const run = this.last.then(() => this.callOnce(feeds));
    this.last = /** @type {any} */ (run.catch(() => {}));
    return run;
  }

  /** @param {Record<string, any>} feeds */
  async callOnce(feeds) {
    const { ort, session, signature } = /** @type {any} */ (this);
    const given = Object.fromEntries(signature.inputs.map((/** @type {any} */ { name, dtype, shape }) => {
      if (!feeds[name]) throw new ModelError("bad-input", `input ${name} is missing`);
      return [name, new ort.Tensor(dtype, feeds[name], feeds[name].shape ?? shape)];
    }));
    const found = await session.run(given);
    return Promise.all(signature.outputs.map(async (/** @type {any} */ { name }) => (
      { name, data: await found[name].getData(), shape: found[name].dims })));
  }

  /** Give the session back. */
  async destroy() {
    await /** @type {any} */ (this).session.release();
  }
}
