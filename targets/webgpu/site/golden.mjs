// @ts-check
/** Reads golden.npz, the inputs and reference outputs of a build, and says how near other outputs come to them. */

/** @typedef {{ dtype: string, shape: number[], data: any }} Tensor */

/** @type {Record<string, [string, any]>} */
const KINDS = {
  "<f4": ["float32", Float32Array], "<f8": ["float64", Float64Array], "<i4": ["int32", Int32Array],
  "<u4": ["uint32", Uint32Array], "<i8": ["int64", BigInt64Array], "<u8": ["uint64", BigUint64Array],
  "|i1": ["int8", Int8Array], "|u1": ["uint8", Uint8Array], "|b1": ["bool", Uint8Array],
  "<f2": ["float16", /** @type {any} */ (globalThis).Float16Array ?? Uint16Array],
};

/**
 * Read an archive that numpy.savez_compressed wrote.
 * @param {ArrayBuffer} archive
 * @returns {Promise<Record<string, Tensor>>}
 */
export async function readNpz(archive) {
  const view = new DataView(archive);
  let end = view.byteLength - 22; // the record that closes a ZIP file, without a comment
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("golden.npz is no ZIP archive");
  /** @type {Record<string, Tensor>} */ const tensors = {};
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const packed = view.getUint16(at + 10, true) === 8;
    const bytes = view.getUint32(at + 20, true);
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const file = new TextDecoder().decode(new Uint8Array(archive, at + 46, name));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const stream = new Blob([new Uint8Array(archive, start, bytes)]).stream();
    const data = packed ? stream.pipeThrough(new DecompressionStream("deflate-raw")) : stream;
    tensors[file.replace(/\.npy$/, "")] = readNpy(await new Response(data).arrayBuffer());
    at += 46 + name + extra + comment;
  }
  return tensors;
}

/** @param {ArrayBuffer} file @returns {Tensor} */
function readNpy(file) {
  const view = new DataView(file);
  const wide = view.getUint8(6) > 1;
  const start = wide ? 12 : 10;
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder().decode(new Uint8Array(file, start, length));
  const kind = KINDS[/'descr': '([^']+)'/.exec(header)?.[1] ?? ""];
  if (!kind || /'fortran_order': True/.test(header)) throw new Error(`golden.npz holds an array of another kind: ${header}`);
  const shape = (/'shape': \(([^)]*)\)/.exec(header)?.[1] ?? "").split(",").filter((size) => size.trim()).map(Number);
  return { dtype: kind[0], shape, data: new kind[1](file.slice(start + length)) };
}

/**
 * The largest deviation as a share of the largest finite reference value; for integers the share that differs.
 * @param {Tensor} want @param {{ data: any }} found
 */
export function difference(want, found) {
  const size = want.data.length;
  if (found.data.length !== size) return Infinity;
  if (!want.dtype.startsWith("float")) {
    let differ = 0;
    for (let i = 0; i < size; i++) differ += want.data[i] === found.data[i] ? 0 : 1;
    return size ? differ / size : 0;
  }
  let gap = 0, largest = 0;
  for (let i = 0; i < size; i++) {
    const [a, b] = [want.data[i], found.data[i]];
    if (!Number.isFinite(a)) {
      if (!Object.is(a, b)) return Infinity;
      continue;
    }
    if (!Number.isFinite(b)) return Infinity;
    largest = Math.max(largest, Math.abs(a));
    gap = Math.max(gap, Math.abs(a - b));
  }
  return largest ? gap / largest : gap;
}
