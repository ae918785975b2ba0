// Keeps what the page is made of, so that it opens without a network. Weights are kept by files.mjs, one copy is enough.
const CACHE = "polycast-page";

self.addEventListener("install", (event) => event.waitUntil(self.skipWaiting()));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const ours = event.request.method === "GET" && url.origin === location.origin;
  if (ours && !/\/weights-\d+\.bin$/.test(url.pathname)) event.respondWith(fresh(event.request));
});

/** What the network has, and where it has nothing, what it had last time. */
async function fresh(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}
