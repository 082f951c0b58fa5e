import { connect, createServer } from "node:net";
import { afterEach, expect, test } from "vitest";
import { startShapedLink } from "./shaped-link.ts";

const closing: (() => unknown)[] = [];
afterEach(() => Promise.all(closing.splice(0).map((close) => close())));

/** A server that answers with `size` bytes that count up. */
async function source(size: number): Promise<string> {
  const server = createServer((socket) => socket.end(Buffer.from(Array.from({ length: size }, (_, i) => i % 251))));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  closing.push(() => new Promise((done) => server.close(done)));
  const address = server.address();
  return `127.0.0.1:${typeof address === "object" ? address?.port : 0}`;
}

function read(address: string): Promise<{ bytes: Buffer; ms: number }> {
  const begun = performance.now();
  const parts: Buffer[] = [];
  const socket = connect(Number(address.split(":")[1]), "127.0.0.1");
  socket.on("data", (part) => parts.push(part));
  return new Promise((resolve, reject) => {
    socket.on("error", reject);
    socket.on("end", () => resolve({ bytes: Buffer.concat(parts), ms: performance.now() - begun }));
  });
}

test("every byte comes, in order, no faster than the rate, and connections share it", async () => {
  const size = 200_000;
  const link = await startShapedLink(await source(size), 1_000);
  closing.push(() => link.close());
  const both = await Promise.all([read(link.address), read(link.address)]);
  for (const { bytes } of both) {
    expect(bytes.length).toBe(size);
    expect(bytes.every((byte, index) => byte === index % 251)).toBe(true);
  }
  // 400 kB at 1 kB a millisecond, less what the bucket holds at once.
  expect(Math.max(...both.map(({ ms }) => ms))).toBeGreaterThan(380);
});

test("a change of rate counts for what is on its way", async () => {
  const link = await startShapedLink(await source(300_000), 10);
  closing.push(() => link.close());
  const reading = read(link.address);
  setTimeout(() => link.setRate(1e6), 100);
  const { bytes, ms } = await reading;
  expect(bytes.length).toBe(300_000);
  // 30 s at the first rate.
  expect(ms).toBeLessThan(10_000);
});
