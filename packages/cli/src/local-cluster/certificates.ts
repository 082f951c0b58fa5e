import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Identity } from "@kvasir/core";
import { identityText } from "@kvasir/core";

/** The program whose `certificates` command is the authority: the one this repository builds, unless another is named. */
const SIDECAR_BINARY =
  process.env.KVASIR_SIDECAR_BINARY ||
  join(import.meta.dirname, "../../../../services/sidecar/target/release/kvasir-sidecar");

/** Where the certificates of one identity lie. */
export interface IssuedFiles {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

export interface IssueOptions {
  /** Readable by its owner only. An authority that lies there is used again. */
  readonly directory: string;
  readonly identities: readonly Identity[];
  /** Until they expire; absent: 30 days. */
  readonly hours?: number;
}

/** Makes keys and certificates for mutual TLS, in place of those that were there. Rejects with the program's one line. */
export async function issueCertificates({ directory, identities, hours }: IssueOptions): Promise<void> {
  const flags = identities.flatMap((identity) => ["--identity", identityText(identity)]);
  const life = hours === undefined ? [] : ["--hours", `${hours}`];
  try {
    await promisify(execFile)(SIDECAR_BINARY, ["certificates", "--dir", directory, ...flags, ...life]);
  } catch (error) {
    const { stderr } = error as { readonly stderr?: string };
    throw new Error(`no certificates: ${stderr?.trim() || (error as Error).message}`);
  }
}

/** The files that `issueCertificates` made for `id`. */
export function issuedFiles(directory: string, id: string): IssuedFiles {
  const file = (name: string) => join(directory, name);
  return { ca: file("ca.pem"), cert: file(`${id}.pem`), key: file(`${id}.key`) };
}

/** What the files hold, as Node's TLS takes it. */
export function contentsOf({ ca, cert, key }: IssuedFiles) {
  return { ca: readFileSync(ca), cert: readFileSync(cert), key: readFileSync(key) };
}

/** Flags of a process that is to use them. */
export function tlsFlags({ ca, cert, key }: IssuedFiles): string[] {
  return ["--tls-ca", ca, "--tls-cert", cert, "--tls-key", key];
}
