import { Gauge, type Registry } from "prom-client";

/** Tells until when the certificate of this process is valid, as it was read last; nothing where it has none. */
export function exposeCertificateExpiry(
  registry: Registry,
  certificates: { readonly expiresAtUnixS: number } | undefined,
): void {
  if (certificates === undefined) return;
  const name = "kvasir_certificate_expiry_timestamp_seconds";
  const help = "Unix time at which this process's certificate expires";
  new Gauge({
    name,
    help,
    registers: [registry],
    collect() {
      this.set(certificates.expiresAtUnixS);
    },
  });
}
