import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect as connectTcp, createServer as createTcpServer, type Socket } from "node:net";
import { join } from "node:path";
import { type Identity, type KvasirError, PROCESS_ROLES, type ProcessRole } from "@kvasir/core";
import { DecodeService, KvTransferService, PrefillService, RouterService } from "@kvasir/proto";
import { TestAuthority } from "@kvasir/testkit/certificates";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { createClient, type RpcClient } from "../client.ts";
import { errorFromService } from "../errors.ts";
import { messages } from "../messages.ts";
import { createServer } from "../server.ts";
import { PLAIN, type Transport, transportFrom } from "../transport.ts";
import type { CertificateFiles } from "./certificates.ts";
import { callerOf } from "./guard.ts";
import { identityFromCertificate } from "./peer-identity.ts";
import { callersOf, PLANES } from "./planes.ts";

let authority: TestAuthority;
let foreign: TestAuthority;
let routerFiles: CertificateFiles;
const ends: (() => unknown)[] = [];
const said: string[] = [];
const LOG = { info: (_: object, text: string) => said.push(text), warn: (_: object, text: string) => said.push(text) };
const ROUTER: Identity = { role: "router", id: "router-0" };

beforeAll(async () => {
  authority = new TestAuthority();
  foreign = new TestAuthority();
  routerFiles = await authority.issue(ROUTER);
});
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
  said.length = 0;
});
afterAll(() => {
  authority.remove();
  foreign.remove();
});

/** A router that says who asked, and echoes what is sent to `place`. */
async function startRouter(transport: Transport): Promise<string> {
  const server = createServer(transport);
  server.add(RouterService, {
    describeCluster: async (_, call) => ({ notReadyReason: callerOf(call)?.id ?? "somebody" }),
    place: async (call) => {
      for await (const _ of messages(call)) call.write({ kind: { case: "queued", value: { position: 1 } } });
    },
    attach: async () => undefined,
  });
  ends.push(() => server.close(0));
  return server.listen("127.0.0.1:0");
}

async function transportOf(identity: Identity, of = authority, hours?: number): Promise<Transport> {
  return transportFrom(await of.issue(identity, hours), identity, LOG);
}

function routerAt(address: string, transport: Transport): RpcClient<typeof RouterService> {
  const client = createClient(RouterService, address, transport);
  ends.push(() => client.channel.close());
  return client;
}

const failureOf = (call: Promise<unknown>): Promise<KvasirError> =>
  call.then(
    () => Promise.reject(new Error("it was let in")),
    (error: unknown) => errorFromService(error),
  );

test("the table of callers names every method of every service between processes", () => {
  for (const service of [RouterService, DecodeService, PrefillService, KvTransferService]) {
    const methods = service.methods.map((method) => method.name).sort();
    expect(Object.keys(PLANES[service.typeName]?.callers ?? {}).sort()).toEqual(methods);
  }
  expect(callersOf("/kvasir.router.v1.RouterService/Missing")).toEqual([]);
});

test("each role is let in or refused by the table, on unary calls and on streams, and the refusal names both roles", async () => {
  const address = await startRouter(transportFrom(routerFiles, ROUTER, LOG));
  for (const role of PROCESS_ROLES) {
    const client = routerAt(address, await transportOf({ role, id: `some-${role}` }));
    const asked = client.describeCluster({}, { deadlineMs: 5_000 });
    if (role === "gateway" || role === "operator") {
      expect((await asked).notReadyReason).toBe(`some-${role}`);
    } else {
      const error = await failureOf(asked);
      expect(error.reason).toBe("permission_denied");
      expect(error.message).toContain(`is for role gateway or operator; the caller is ${role}/some-${role}`);
    }
    const outcome = await placeOnce(client);
    expect([role, outcome]).toEqual([role, role === "gateway" ? "answered" : "permission_denied"]);
  }
});

async function placeOnce(client: RpcClient<typeof RouterService>): Promise<string> {
  const stream = client.place({ deadlineMs: 5_000 });
  stream.write({ kind: { case: "start", value: { requestId: "r" } } });
  stream.end();
  try {
    let answers = 0;
    for await (const _ of messages(stream)) answers++;
    return answers === 1 ? "answered" : "nothing";
  } catch (error) {
    return errorFromService(error).reason;
  }
}

test("a server of another role is not spoken to", async () => {
  const identity: Identity = { role: "decode", id: "decode-0" };
  const address = await startRouter(await transportOf(identity));
  const error = await failureOf(routerAt(address, await transportOf(GATEWAY)).describeCluster({}));
  expect(error.reason).toBe("unavailable");
  expect(error.message).toContain(`the peer at ${address} is decode/decode-0; expected role router`);
});

/** OpenSSL's words depend on what the chain shows. */
const NOT_TRUSTED = /unable to (get|verify)|self-signed|signature failure/;
const GATEWAY: Identity = { role: "gateway", id: "gateway-0" };

test("a plain caller is refused with a reason, and the server says so too", async () => {
  const address = await startRouter(transportFrom(routerFiles, ROUTER, LOG));
  const client = routerAt(address, PLAIN);
  const error = await failureOf(client.describeCluster({}, { deadlineMs: 5_000 }));
  expect(error.reason).toBe("permission_denied");
  expect(error.message).toContain("this process takes mutual TLS only");
  expect(await placeOnce(client)).toBe("permission_denied");
  expect(said.join("\n")).toContain("it speaks plain; this process takes mutual TLS only");
});

test("a plain server is told apart from one that is away", async () => {
  const address = await startRouter(PLAIN);
  const error = await failureOf(routerAt(address, await transportOf(GATEWAY)).describeCluster({}));
  expect(error.reason).toBe("unavailable");
  expect(error.message).toContain("speaks no TLS; give it --tls-ca");
});

test("an expired certificate is refused, and the server says why", async () => {
  const address = await startRouter(transportFrom(routerFiles, ROUTER, LOG));
  const client = await transportOf({ role: "gateway", id: "old" }, authority, 0);
  // Its last second is the one that it was made in.
  const ask = async () => {
    const asking = routerAt(address, client);
    return asking.describeCluster({}, { deadlineMs: 5_000 }).then(
      () => "let in",
      (error: KvasirError) => error.reason,
    );
  };
  await expect.poll(ask, { timeout: 10_000 }).toBe("permission_denied");
  expect(said.join("\n")).toContain("its certificate is not valid here: CERT_HAS_EXPIRED");
});

test("both sides refuse certificates of another authority", async () => {
  const address = await startRouter(transportFrom(routerFiles, ROUTER, LOG));
  const stranger = await transportOf(GATEWAY, foreign);
  const error = await failureOf(routerAt(address, stranger).describeCluster({}));
  expect(error.reason).toBe("unavailable");
  expect(error.message).toMatch(NOT_TRUSTED);

  // Trusts us, but is signed by somebody we do not know.
  const files = await foreign.issue(GATEWAY);
  const mixed = transportFrom({ ...files, ca: routerFiles.ca }, GATEWAY, LOG);
  const refusal = await failureOf(routerAt(address, mixed).describeCluster({}));
  expect(refusal.reason).toBe("permission_denied");
  expect(said.join("\n")).toContain("its certificate is not valid here: ");
});

test("changed files are used by new connections, and a running stream goes on", async () => {
  const home = new TestAuthority();
  ends.push(() => home.remove());
  const files = await home.issue({ role: "router", id: "renewed" });
  const address = await startRouter(transportFrom(files, { role: "router", id: "renewed" }, LOG));
  const trusting = { ...(await home.issue(GATEWAY)), ca: join(home.directory, "first-ca.pem") };
  copyFileSync(files.ca, trusting.ca);
  const gateway = transportFrom(trusting, GATEWAY, LOG);
  const stream = routerAt(address, gateway).place();
  const answers = messages(stream);
  const ask = async () => {
    stream.write({ kind: { case: "firstToken", value: {} } });
    return (await answers.next()).done;
  };
  expect(await ask()).toBe(false);

  // The whole cluster moves to another authority.
  const next = await foreign.issue({ role: "router", id: "renewed" });
  for (const kind of ["ca", "key", "cert"] as const) copyFileSync(next[kind], files[kind]);
  const late = await failureOf(routerAt(address, gateway).describeCluster({}));
  expect(late.message).toMatch(NOT_TRUSTED);
  const after = routerAt(address, await transportOf({ role: "gateway", id: "after" }, foreign));
  expect((await after.describeCluster({})).notReadyReason).toBe("after");
  expect(said).toContain("certificates were read again");
  expect(await ask()).toBe(false);
  stream.cancel();
  await answers.next().catch(() => undefined);
});

test("files that are half written change nothing, and are used when they are whole", async () => {
  const identity: Identity = { role: "router", id: "torn" };
  const own = new TestAuthority();
  ends.push(() => own.remove());
  const files = await own.issue(identity);
  const address = await startRouter(transportFrom(files, identity, LOG));
  const gateway = await transportOf(GATEWAY, own);
  const ask = () => routerAt(address, gateway).describeCluster({});
  await ask();
  const [cert, key] = [readFileSync(files.cert), readFileSync(files.key)];
  writeFileSync(files.cert, cert.subarray(0, 100));
  await ask();
  expect(said).toContain("changed certificates cannot be used; the former ones stay");
  await own.issue({ role: "decode", id: "torn" });
  await ask();
  writeFileSync(files.cert, cert);
  await ask();
  writeFileSync(files.key, key);
  await ask();
  expect(said.at(-1)).toBe("certificates were read again");
});

test("what cannot be used is said at the start, with its path", async () => {
  const files = await authority.issue(GATEWAY);
  const start = (changed: Partial<CertificateFiles>, own = GATEWAY) =>
    transportFrom({ ...files, ...changed }, own, LOG);
  expect(() => start({ key: join(authority.directory, "absent") })).toThrow(/cannot read .*absent/);
  expect(() => start({ key: routerFiles.key })).toThrow(/cannot be used: .*key values mismatch/);
  expect(() => start({ cert: files.key })).toThrow(/gateway-0.key is no certificate/);
  expect(() => start({ cert: files.ca })).toThrow(/ca.pem is of nobody/);
  expect(() => start({}, ROUTER)).toThrow(/is the certificate of gateway\/gateway-0, this is router\/router-0/);
  expect(() => transportFrom({ ca: files.ca, cert: undefined, key: undefined }, GATEWAY, LOG)).toThrow("together");
  expect(transportFrom({ ca: undefined, cert: undefined, key: undefined }, GATEWAY, LOG)).toBe(PLAIN);
});

test("a connection that says nothing holds up nobody", async () => {
  const address = await startRouter(transportFrom(routerFiles, ROUTER, LOG));
  const silent = connectTcp(Number(address.split(":")[1]), "127.0.0.1");
  ends.push(() => silent.destroy());
  await new Promise((resolve) => silent.once("connect", resolve));
  expect((await routerAt(address, await transportOf(GATEWAY)).describeCluster({})).notReadyReason).toBe("gateway-0");
});

test("a server that never answers is given up", async () => {
  const silent = createTcpServer().listen(0, "127.0.0.1");
  ends.push(() => silent.close());
  const open = new Set<Socket>();
  silent.on("connection", (socket) => open.add(socket));
  ends.push(() => {
    for (const socket of open) socket.destroy();
  });
  await new Promise((resolve) => silent.once("listening", resolve));
  const { port } = silent.address() as AddressInfo;
  const error = await failureOf(routerAt(`127.0.0.1:${port}`, await transportOf(GATEWAY)).describeCluster({}));
  expect(error.reason).toBe("unavailable");
  expect(error.message).toContain("no answer in 5000 ms");
});

test("only one plain URI name makes an identity", () => {
  const kind = (subjectaltname: string) => identityFromCertificate({ subjectaltname }).kind;
  const uri = (role: ProcessRole) => `URI:spiffe://kvasir/${role}/a`;
  expect(kind(`DNS:localhost, IP Address:127.0.0.1, ${uri("decode")}`)).toBe("identity");
  expect(kind(`${uri("decode")}, ${uri("gateway")}`)).toBe("nobody");
  expect(kind(`${uri("decode")}, URI:https://example.org`)).toBe("nobody");
  expect(kind(`DNS:"a, ${uri("gateway")}, b"`)).toBe("nobody");
  expect(kind("DNS:spiffe://kvasir/gateway/a")).toBe("nobody");
  expect(kind("")).toBe("nobody");
});
