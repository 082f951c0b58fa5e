import { constants, X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { createSecureContext, type SecureContext, type SecureContextOptions } from "node:tls";
import { type Identity, identityText } from "@kvasir/core";
import { identityFromCertificate } from "./peer-identity.ts";

/** Paths of PEM files: trusted authorities, own certificate with its chain, own private key. */
export interface CertificateFiles {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

export interface TlsLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** What one state of the files gives. Another state gives another object. */
export interface LoadedCertificates {
  /** For both ends of a connection. */
  readonly options: SecureContextOptions;
  readonly context: SecureContext;
  readonly expiresAtUnixS: number;
}

/**
 * A process's certificates, read again when their files change: each new connection asks for the `current` ones, connections that are
 * there go on with theirs. TLS 1.3 only, without resumption, so that every connection is checked against the authority of now.
 */
export class Certificates {
  readonly #files: CertificateFiles;
  readonly #own: Identity;
  readonly #log: TlsLog;
  #stamp: string;
  #loaded: LoadedCertificates;

  /** Throws with the path of what cannot be used. */
  constructor(files: CertificateFiles, own: Identity, log: TlsLog) {
    this.#files = files;
    this.#own = own;
    this.#log = log;
    this.#stamp = stampOf(files);
    this.#loaded = load(files, own);
  }

  /** The files as they are now; what was read last while they cannot be used. Costs three `stat` calls. */
  current(): LoadedCertificates {
    const stamp = stampOf(this.#files);
    if (stamp !== this.#stamp) {
      this.#stamp = stamp;
      try {
        this.#loaded = load(this.#files, this.#own);
        this.#log.info({ ...this.#files }, "certificates were read again");
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        this.#log.warn({ error: why }, "changed certificates cannot be used; the former ones stay");
      }
    }
    return this.#loaded;
  }

  /** Of the own certificate in use. */
  get expiresAtUnixS(): number {
    return this.current().expiresAtUnixS;
  }

  get log(): TlsLog {
    return this.#log;
  }
}

function stampOf({ ca, cert, key }: CertificateFiles): string {
  const stamps = [ca, cert, key].map((path) => {
    const facts = statSync(path, { bigint: true, throwIfNoEntry: false });
    return facts ? `${facts.ino}:${facts.mtimeNs}:${facts.size}` : "absent";
  });
  return stamps.join(" ");
}

function load(files: CertificateFiles, own: Identity): LoadedCertificates {
  const read = (path: string): Buffer => {
    try {
      return readFileSync(path);
    } catch (error) {
      throw new Error(`cannot read ${path}: ${(error as Error).message}`);
    }
  };
  const [ca, cert, key] = [read(files.ca), read(files.cert), read(files.key)];
  const certificate = checkedCertificate(own, files.cert, cert);
  const options: SecureContextOptions = {
    ca,
    cert,
    key,
    minVersion: "TLSv1.3",
    secureOptions: constants.SSL_OP_NO_TICKET,
  };
  try {
    const expiresAtUnixS = Math.floor(certificate.validToDate.getTime() / 1000);
    return { options, context: createSecureContext(options), expiresAtUnixS };
  } catch (error) {
    throw new Error(`${files.ca}, ${files.cert} and ${files.key} cannot be used: ${(error as Error).message}`);
  }
}

function checkedCertificate(own: Identity, path: string, pem: Buffer): X509Certificate {
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(pem);
  } catch (error) {
    throw new Error(`${path} is no certificate: ${(error as Error).message}`);
  }
  const subjectaltname = certificate.subjectAltName;
  const outcome = identityFromCertificate(subjectaltname === undefined ? {} : { subjectaltname });
  if (outcome.kind === "nobody") throw new Error(`${path} is of nobody: ${outcome.message}`);
  const found = identityText(outcome.identity);
  if (found === identityText(own)) return certificate;
  throw new Error(`${path} is the certificate of ${found}, this is ${identityText(own)}; give --tls-cert of its own`);
}
