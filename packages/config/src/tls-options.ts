import type { OptionSpecs } from "./option-spec.ts";

/** Options of every process of a cluster: all three for mutual TLS between processes, none for plain. */
export const TLS_OPTIONS = {
  tlsCa: {
    type: "string",
    env: "KVASIR_TLS_CA",
    help: "Trusted authorities, PEM. With --tls-cert and --tls-key: mutual TLS between processes, and plain ones are refused.",
  },
  tlsCert: {
    type: "string",
    env: "KVASIR_TLS_CERT",
    help: "Certificate of this process, PEM, with the URI spiffe://kvasir/ROLE/ID. Read again when it changes.",
  },
  tlsKey: { type: "string", env: "KVASIR_TLS_KEY", help: "Private key of this process, PEM." },
} as const satisfies OptionSpecs;

/** The values of `TLS_OPTIONS` as paths. */
export function tlsFilesFrom(values: {
  readonly tlsCa: string | undefined;
  readonly tlsCert: string | undefined;
  readonly tlsKey: string | undefined;
}) {
  return { ca: values.tlsCa, cert: values.tlsCert, key: values.tlsKey };
}
