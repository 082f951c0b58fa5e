import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type IssuedFiles, issueCertificates, issuedFiles } from "@kvasir/cli/certificates";
import type { Identity } from "@kvasir/core";

/** A certificate authority of a test's own. */
export class TestAuthority {
  readonly directory = mkdtempSync(join(tmpdir(), "kvasir-tls-"));

  /** New certificates for an identity, in place of those it had. */
  async issue(identity: Identity, hours?: number): Promise<IssuedFiles> {
    const { directory } = this;
    await issueCertificates({ directory, identities: [identity], ...(hours === undefined ? {} : { hours }) });
    return issuedFiles(directory, identity.id);
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}
