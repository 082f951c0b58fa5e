import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { MEMBER_OPTIONS } from "@kvasir/config";

const BUILT_SIDECAR = fileURLToPath(
  new URL("../../../services/sidecar/target/release/kvasir-sidecar", import.meta.url),
);

/** Flags of every process that has a sidecar. */
export const SIDECAR_OWNER_FLAGS = {
  ...MEMBER_OPTIONS,
  transferListen: {
    type: "address",
    env: "KVASIR_TRANSFER_LISTEN",
    default: "127.0.0.1:0",
    help: "Address where the sidecar serves KV.",
  },
  sidecarBinary: {
    type: "string",
    env: "KVASIR_SIDECAR_BINARY",
    default: BUILT_SIDECAR,
    help: "The kvasir-sidecar program.",
  },
  stateDir: {
    type: "string",
    env: "KVASIR_STATE_DIR",
    default: join(tmpdir(), "kvasir"),
    help: "Directory for the socket between this process and its sidecar.",
  },
} as const;
