import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect } from "node:tls";
import { issueCertificates, issuedFiles, type LocalCluster, OPERATOR } from "@kvasir/cli";
import { contentsOf } from "@kvasir/cli/certificates";
import type { Identity, KvasirError, ProcessRole } from "@kvasir/core";
import { DecodeService, KvTransferService, PrefillService, RouterService, type RunTicket } from "@kvasir/proto";
import {
  createClient,
  errorFromService,
  messages,
  PLAIN,
  type RpcClient,
  type Transport,
  transportFrom,
} from "@kvasir/rpc";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { answerOf, chatBody, expectNothingLeft, metric, openStream, post, processOf, startTiny } from "./support.ts";

const SILENT = { info: () => undefined, warn: () => undefined };
let directory: string;
let cluster: LocalCluster;
const channels: { close(): void }[] = [];

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "kvasir-tls-"));
  cluster = await startTiny({
    tlsDirectory: directory,
    stores: 1,
    extraFlags: { store: ["--admission", "all"] },
  });
}, 90_000);
afterEach(() => {
  for (const channel of channels.splice(0)) channel.close();
});
afterAll(async () => {
  await cluster?.stop();
  rmSync(directory, { recursive: true, force: true });
});

async function transportOf(role: ProcessRole, of = directory, hours = 1): Promise<Transport> {
  const identity: Identity = { role, id: `test-${role}` };
  await issueCertificates({ directory: of, identities: [identity], hours });
  return transportFrom(issuedFiles(of, identity.id), identity, SILENT);
}

function clientOf<S extends Parameters<typeof createClient>[0]>(
  service: S,
  address: string | undefined,
  transport: Transport,
): RpcClient<S> {
  const client = createClient(service, address ?? "", transport);
  channels.push(client.channel);
  return client;
}

/** How a stream ends to which one message was sent. */
async function endOf(stream: AsyncIterable<unknown>): Promise<KvasirError | undefined> {
  try {
    for await (const _ of stream);
    return undefined;
  } catch (error) {
    return errorFromService(error);
  }
}

const addressOf = (kind: string) => processOf(cluster, kind).grpcAddress;
const DEADLINE = { deadlineMs: 10_000 };

/** One call on each plane, as far as its caller is let in. */
const CALLS: Readonly<Record<string, (transport: Transport) => Promise<KvasirError | undefined>>> = {
  async place(transport) {
    const stream = clientOf(RouterService, addressOf("router"), transport).place(DEADLINE);
    stream.end();
    return endOf(stream);
  },
  async attach(transport) {
    const stream = clientOf(RouterService, addressOf("router"), transport).attach(DEADLINE);
    stream.end();
    return endOf(stream);
  },
  async generate(transport) {
    return endOf(clientOf(DecodeService, addressOf("decode"), transport).generate({}, DEADLINE));
  },
  async run(transport) {
    const stream = clientOf(PrefillService, addressOf("prefill"), transport).run(DEADLINE);
    stream.end();
    return endOf(stream);
  },
  async renew(transport) {
    const renewed = clientOf(PrefillService, addressOf("prefill"), transport).renew({}, DEADLINE);
    return renewed.then(() => undefined, errorFromService);
  },
  async pull(transport) {
    const { ticket, layoutFingerprint } = exported;
    const { layout, shardAddresses = [] } = ticket.source ?? {};
    const request = {
      ...{ blockSize: layout?.blockSize ?? 0, dtype: layout?.dtype ?? 0, headCount: layout?.kvHeadCount ?? 0 },
      ...(ticket.ticket ? { ticket: ticket.ticket } : {}),
      tokenEnd: 8,
      layoutFingerprint,
    };
    return endOf(clientOf(KvTransferService, shardAddresses[0] ?? "", transport).pull(request, DEADLINE));
  },
};

const LET_IN: Readonly<Record<string, readonly ProcessRole[]>> = {
  place: ["gateway"],
  attach: ["prefill", "decode", "mixed", "store"],
  generate: ["gateway"],
  run: ["prefill", "decode", "mixed"],
  renew: ["decode", "mixed"],
  pull: ["prefill", "decode", "mixed", "store"],
};
const ROLES: readonly ProcessRole[] = ["gateway", "router", "prefill", "decode", "mixed", "store", "operator", "redis"];

/** KV that lies ready at the prefill worker as long as its `Run` is open. */
let exported: { readonly ticket: RunTicket; readonly layoutFingerprint: Uint8Array };

test("a store attaches, follows workers and borrows their blocks as itself", async () => {
  const response = await post(cluster, chatBody("Everything that is said here goes to the store. ".repeat(10)));
  expect(response.status).toBe(200);
  const pulls = () => metric(processOf(cluster, "store"), 'kvasir_store_pulls_total{outcome="complete"}');
  await expect.poll(pulls, { timeout: 10_000 }).toBeGreaterThan(0);
});

test("a whole request goes through a cluster in which everything speaks mutual TLS", async () => {
  expect(cluster.redisUrl).toMatch(/^rediss:/);
  const answer = await answerOf(await post(cluster, chatBody("Who built the old mill? ".repeat(30))));
  expect(answer.kvasir.mode).toBe("split");
  expect(answer.kvasir.kv_bytes_moved).toBeGreaterThan(0);
  expect(answer.usage.completion_tokens).toBe(24);
  await expectNothingLeft(cluster);
});

test("keys are for their owner alone", () => {
  for (const name of ["ca", "gateway-0", "router-0", "prefill-0", "decode-0", "operator", "redis"]) {
    expect(statSync(join(directory, `${name}.key`)).mode & 0o777).toBe(0o600);
  }
});

test("on each plane the wrong roles, plain peers and foreign authorities are refused, and the right roles let in", async () => {
  const foreign = mkdtempSync(join(tmpdir(), "kvasir-tls-"));
  const transports = new Map<ProcessRole, Transport>();
  for (const role of ROLES) transports.set(role, await transportOf(role));
  const strangers = new Map<ProcessRole, Transport>();
  for (const role of ["gateway", "prefill", "decode"] as const) strangers.set(role, await transportOf(role, foreign));
  // Made before: what it exports is there for one lease.
  const run = await openRun();
  for (const [plane, call] of Object.entries(CALLS)) {
    for (const role of ROLES) {
      const error = await call(transports.get(role) ?? PLAIN);
      const isIn = LET_IN[plane]?.includes(role) ?? false;
      expect([plane, role, error?.reason !== "permission_denied"]).toEqual([plane, role, isIn]);
      if (!isIn) {
        expect(error?.message).toContain(
          `is for role ${LET_IN[plane]?.join(" or ")}; the caller is ${role}/test-${role}`,
        );
      }
    }
    const plain = await call(PLAIN);
    expect([plane, plain?.reason]).toEqual([plane, "permission_denied"]);
    expect(plain?.message).toContain("mutual TLS only");
    const right = LET_IN[plane]?.[0] ?? "gateway";
    const stranger = await call(strangers.get(right) ?? PLAIN);
    expect([plane, stranger?.reason]).toEqual([plane, "unavailable"]);
  }
  rmSync(foreign, { recursive: true });
  expect(await CALLS.pull?.(transports.get("decode") ?? PLAIN)).toBeUndefined();
  run.cancel();
  await expectNothingLeft(cluster);
}, 60_000);

/** Has a prompt computed as a decode worker does, and keeps its KV there. */
async function openRun() {
  const { workers } = await clientOf(RouterService, addressOf("router"), await transportOf("operator")).describeCluster(
    {},
  );
  const prefill = workers.find((worker) => worker.hello?.workerId === "prefill-0");
  const layoutFingerprint = prefill?.hello?.layout?.fingerprint ?? new Uint8Array();
  const run = clientOf(PrefillService, addressOf("prefill"), await transportOf("decode")).run();
  channels.pop(); // It stays open over the test.
  run.on("error", () => undefined);
  const start = {
    requestId: "tls",
    transferId: crypto.getRandomValues(new Uint8Array(16)),
    expectedEpoch: prefill?.epoch ?? 0n,
    promptTokenIds: [1, 2, 3, 4, 5, 6, 7, 8],
    sampling: { maxTokens: 1 },
    tenantScope: new Uint8Array(16),
    layoutFingerprint,
  };
  run.write({ kind: { case: "start", value: start } });
  for await (const { kind } of messages(run)) {
    if (kind.case !== "ticket") continue;
    exported = { ticket: kind.value, layoutFingerprint };
    break;
  }
  return run;
}

test("an expired certificate is refused", async () => {
  const old = await transportOf("gateway", directory, 0);
  // Its last second is the one that it was made in.
  const reason = async () => (await CALLS.place?.(old))?.reason;
  await expect.poll(reason, { timeout: 10_000 }).toBe("permission_denied");
});

test("nobody attaches under another's name", async () => {
  const stream = clientOf(RouterService, addressOf("router"), await transportOf("decode")).attach(DEADLINE);
  const { workers } = await clientOf(RouterService, addressOf("router"), await transportOf("operator")).describeCluster(
    {},
  );
  const hello = workers.find((worker) => worker.hello?.workerId === "decode-0")?.hello;
  if (hello === undefined) throw new Error("decode-0 is not attached");
  stream.write({ epoch: 2n ** 52n, sequence: 1n, kind: { case: "hello", value: hello } });
  const error = await endOf(stream);
  expect(error?.reason).toBe("permission_denied");
  expect(error?.message).toContain("hello is of decode/decode-0, the certificate of decode/test-decode");
});

test("certificates are renewed under a running stream", async () => {
  const stream = await openStream(
    cluster,
    chatBody("Tell me of the mill. ".repeat(10), { max_tokens: 200, ignore_eos: true }),
  );
  expect(await stream.next()).toBeDefined();
  const names = ["gateway", "router", "prefill", "decode", "store"] as const;
  const before = await Promise.all(["router", "prefill", "decode"].map(serialAt));
  const identities = names.map((role): Identity => ({ role, id: `${role}-0` }));
  await issueCertificates({ directory, identities });
  const after = await Promise.all(["router", "prefill", "decode"].map(serialAt));
  for (const [index, serial] of after.entries()) expect(serial).not.toBe(before[index]);
  let last: unknown;
  for (let event = await stream.next(); event !== undefined; event = await stream.next()) last = event;
  expect(last).toBe("done");

  for (const { name, kind } of cluster.processes.filter(({ adminAddress }) => adminAddress)) {
    const expiry = (await cluster.metrics(name)).get("kvasir_certificate_expiry_timestamp_seconds") ?? 0;
    expect([kind, Math.round((expiry - Date.now() / 1000) / 86_400)]).toEqual([kind, 30]);
  }

  // A process that starts anew has the new ones, and the others talk to it.
  await processOf(cluster, "decode").restart();
  await cluster.ready();
  const answer = await answerOf(await post(cluster, chatBody("Who built the old mill? ".repeat(30))));
  expect(answer.kvasir.kv_bytes_moved).toBeGreaterThan(0);
  await expectNothingLeft(cluster);
}, 60_000);

/** Serial number of the certificate that a process shows to a new connection. */
function serialAt(kind: string): Promise<string> {
  const [host = "", port] = (addressOf(kind) ?? "").split(":");
  return new Promise((resolve, reject) => {
    const contents = contentsOf(issuedFiles(directory, OPERATOR.id));
    const socket = connect({ host, port: Number(port), ...contents, ALPNProtocols: ["h2"] }, () => {
      resolve(socket.getPeerCertificate().serialNumber);
      socket.destroy();
    });
    socket.on("error", reject);
  });
}
