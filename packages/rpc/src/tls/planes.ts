import type { ProcessRole } from "@kvasir/core";

interface Plane {
  /** Who may be at the address of this service. */
  readonly servers: readonly ProcessRole[];
  /** Who may call each method. */
  readonly callers: Readonly<Record<string, readonly ProcessRole[]>>;
}

/**
 * Who talks to whom, by service and method as on the wire. What is not in here is refused. `KvTransferService` is served by
 * sidecars, which enforce the same themselves (`transfer_listener.rs`, `tls.rs`).
 */
export const PLANES: Readonly<Record<string, Plane>> = {
  "kvasir.router.v1.RouterService": {
    servers: ["router"],
    callers: {
      Place: ["gateway"],
      Attach: ["prefill", "decode", "mixed", "store"],
      DescribeCluster: ["gateway", "operator"],
    },
  },
  "kvasir.worker.v1.DecodeService": { servers: ["decode", "mixed"], callers: { Generate: ["gateway"] } },
  "kvasir.transfer.v1.KvTransferService": {
    servers: ["prefill", "decode", "mixed", "store"],
    callers: { Pull: ["prefill", "decode", "mixed", "store"] },
  },
  "kvasir.kvstore.v1.LendingService": {
    servers: ["prefill", "decode", "mixed", "store"],
    callers: { Lend: ["prefill", "decode", "mixed", "store"] },
  },
  "kvasir.kvstore.v1.CacheFeedService": {
    servers: ["prefill", "decode", "mixed"],
    callers: { Follow: ["store"] },
  },
  "kvasir.worker.v1.PrefillService": {
    servers: ["prefill", "mixed"],
    callers: { Run: ["prefill", "decode", "mixed"], Renew: ["decode", "mixed"] },
  },
};

/** Roles that may call `/package.Service/Method`. */
export function callersOf(path: string): readonly ProcessRole[] {
  const [, service = "", method = ""] = path.split("/");
  return PLANES[service]?.callers[method] ?? [];
}

/** Roles that may serve `package.Service`. */
export function serversOf(service: string): readonly ProcessRole[] {
  return PLANES[service]?.servers ?? [];
}
