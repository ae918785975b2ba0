// @ts-check
/** The files of a build: each held to its sha256; weights are kept by the browser, so that they are fetched once. */

const CACHE = "polycast-weights";

/** @param {string} message @returns {Error} */
const bad = (message) => Object.assign(new Error(message), { code: "bad-file" });

/** @param {BufferSource} data @returns {Promise<string>} */
export async function sha256(data) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {URL} url @param {string} [digest] */
export async function fetchText(url, digest) {
  const response = await fetch(url);
  if (!response.ok) throw bad(`${url.pathname}: HTTP status ${response.status}`);
  const data = await response.arrayBuffer();
  if (digest && (await sha256(data)) !== digest) throw bad(`${url.pathname} is not the file of this build`);
  return new TextDecoder().decode(data);
}

/**
 * Give the bytes of one file of weights, from the cache where they lie there.
 * @param {URL} folder
 * @param {{ file: string, bytes: number, sha256: string }} file
 * @param {(bytes: number) => void} told  called with the bytes that are there
 * @returns {Promise<Uint8Array>}
 */
export async function fetchWeights(folder, file, told) {
  const key = new URL(`${file.file}?sha256=${file.sha256}`, folder);
  const cache = await globalThis.caches?.open(CACHE).catch(() => undefined); // private windows may refuse
  const kept = await cache?.match(key);
  if (kept) {
    const data = new Uint8Array(await kept.arrayBuffer());
    if ((await sha256(data)) === file.sha256) {
      told(data.length);
      return data;
    }
    await cache?.delete(key);
  }
  const data = await download(key, file.bytes, told);
  if ((await sha256(data)) !== file.sha256) throw bad(`${file.file} is damaged: its sha256 is not the plan's`);
  for (const old of (await cache?.keys()) ?? []) {
    if (new URL(old.url).pathname === key.pathname) await cache?.delete(old); // of an earlier build in this folder
  }
  await cache?.put(key, new Response(data)).catch(() => {}); // a full disk: it is fetched again next time
  return data;
}

/** @param {URL} url @param {number} bytes @param {(bytes: number) => void} told */
async function download(url, bytes, told) {
  const response = await fetch(url);
  if (!response.ok || !response.body) throw bad(`${url.pathname}: HTTP status ${response.status}`);
  const data = new Uint8Array(bytes);
  let at = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > bytes) throw bad(`${url.pathname} is longer than the plan says`);
    data.set(value, at);
    at += value.length;
    told(at);
  }
  if (at !== bytes) throw bad(`${url.pathname} ends after ${at} of ${bytes} bytes`);
  return data;
}
