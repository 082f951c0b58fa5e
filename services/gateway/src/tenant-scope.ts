import { createHmac } from "node:crypto";

const SCOPE_BYTES = 16;
const BEARER = /^bearer +(.+)$/i;

/**
 * Who may reuse whose KV: 16 bytes that go into every block's hash. Derived here, from the API key that a request came with, under the
 * cluster's secret, so that no client can name another's scope. `cacheSalt` is the client's own, and narrows: requests share KV when both the key
 * and the salt are the same. Requests without a key are one tenant.
 */
export function tenantScope(
  secret: string,
  authorization: string | undefined,
  cacheSalt: string | undefined,
): Uint8Array {
  const key = bearerKey(authorization);
  const tenant = derive(secret, key === undefined ? "tenant:default" : `key:${key}`);
  return cacheSalt === undefined ? tenant : derive(tenant, `salt:${cacheSalt}`);
}

/** Whose share of the cluster a request takes: a tenant that the policies name, whatever its key, else that of its key. A salt changes nothing. */
export function tenantId(secret: string, authorization: string | undefined, name: string | undefined): Uint8Array {
  return name === undefined ? tenantScope(secret, authorization, undefined) : derive(secret, `policy:${name}`);
}

/** A name of the tenant's own, as it is told to the router. */
export function tenantKey(tenant: Uint8Array, kind: "session" | "prompt", name: string): Uint8Array {
  return derive(tenant, `${kind}:${name}`);
}

/** The API key of a request; undefined when it came without one. */
export function bearerKey(authorization: string | undefined): string | undefined {
  return BEARER.exec(authorization ?? "")?.[1];
}

function derive(key: string | Uint8Array, label: string): Uint8Array {
  return createHmac("sha256", key).update(label).digest().subarray(0, SCOPE_BYTES);
}
