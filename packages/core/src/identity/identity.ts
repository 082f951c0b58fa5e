/** What a process is for. `operator` is a person's tools; `redis` is the cluster's Redis, which calls nobody. */
export const PROCESS_ROLES = ["gateway", "router", "prefill", "decode", "mixed", "store", "operator", "redis"] as const;
export type ProcessRole = (typeof PROCESS_ROLES)[number];

/** One process of the cluster, as its certificate names it. A sidecar has its worker's identity. */
export interface Identity {
  readonly role: ProcessRole;
  /** Unique in the cluster: 1 to 128 letters, digits, dots, dashes or underscores. */
  readonly id: string;
}

const URI = /^spiffe:\/\/kvasir\/([a-z]+)\/([A-Za-z0-9._-]{1,128})$/;

/** The identity in a certificate's URI name, `spiffe://kvasir/ROLE/ID`; undefined when the URI is none of ours. */
export function identityFromUri(uri: string): Identity | undefined {
  const match = URI.exec(uri);
  const role = PROCESS_ROLES.find((known) => known === match?.[1]);
  return role === undefined || match?.[2] === undefined ? undefined : { role, id: match[2] };
}

/** `role/id`, for messages. */
export function identityText({ role, id }: Identity): string {
  return `${role}/${id}`;
}
