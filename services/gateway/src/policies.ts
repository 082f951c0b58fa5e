import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { z } from "zod";
import { bearerKey } from "./tenant-scope.ts";

const WEIGHT_MAX = 1_000;
const TargetMs = z.number().gt(0).max(3_600_000);
const Slo = z.strictObject({
  ttft_ms: TargetMs.optional(),
  tpot_ms: TargetMs.optional(),
  on_miss: z.enum(["reject", "best_effort"]).optional(),
});
const Tenant = z.strictObject({
  weight: z
    .number()
    .min(1 / WEIGHT_MAX)
    .max(WEIGHT_MAX)
    .default(1),
  service_tier: z.enum(["default", "flex", "priority"]).default("default"),
  slo: Slo.default({}),
});
const Named = Tenant.extend({
  key_sha256: z
    .array(z.string().regex(/^[0-9a-f]{64}$/, "is no SHA-256 in hex; make one with: printf %s KEY | sha256sum"))
    .min(1),
});
const File = z.strictObject({
  tenants: z.record(z.string().min(1).max(64), Named).default({}),
  others: Tenant.prefault({}),
  models: z.record(z.string().min(1), z.strictObject({ slo: Slo })).default({}),
});

export type SloDefaults = z.infer<typeof Slo>;

/** What holds for the requests of one tenant where they say nothing else. */
export interface TenantPolicy {
  /** Of a tenant named in the file; else undefined: each key is a tenant of its own. */
  readonly name: string | undefined;
  /** Share of the cluster beside those of others that wait. */
  readonly weight: number;
  /** What `service_tier: "auto"` means. */
  readonly serviceTier: "default" | "flex" | "priority";
  readonly slo: SloDefaults;
}

/** Defaults by tenant and by model. */
export interface Policies {
  tenantOf(authorization: string | undefined): TenantPolicy;
  modelSlo(model: string): SloDefaults;
}

const PLAIN: TenantPolicy = { name: undefined, weight: 1, serviceTier: "default", slo: {} };

/** Without a file every API key is a tenant, and all are alike. */
export const NO_POLICIES: Policies = { tenantOf: () => PLAIN, modelSlo: () => ({}) };

/** Reads a file of policies. Throws, with the file and the field, for what it does not understand. */
export function loadPolicies(path: string): Policies {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new Error(`--policies ${path} cannot be read: ${error instanceof Error ? error.message : error}`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`--policies ${path} is not JSON: ${error instanceof Error ? error.message : error}`);
  }
  return policiesFrom(value, `--policies ${path}`);
}

/** `label` begins the message of what is wrong. */
export function policiesFrom(value: unknown, label: string): Policies {
  const checked = File.safeParse(value);
  if (!checked.success) {
    const [issue] = checked.error.issues;
    const where = issue?.path.join(".") || "the file";
    const unknown = issue?.code === "unrecognized_keys" ? `: ${issue.keys.join(", ")} means nothing there` : "";
    throw new Error(`${label}: ${where} is wrong${unknown || `: ${issue?.message}`}`);
  }
  const { tenants, others, models } = checked.data;
  const byKey = new Map<string, TenantPolicy>();
  for (const [name, tenant] of Object.entries(tenants)) {
    for (const digest of tenant.key_sha256) {
      const owner = byKey.get(digest)?.name;
      if (owner !== undefined) throw new Error(`${label}: tenants ${owner} and ${name} have the same key ${digest}`);
      byKey.set(digest, { name, weight: tenant.weight, serviceTier: tenant.service_tier, slo: tenant.slo });
    }
  }
  // Whoever is not named shares one share: more keys are not more of it.
  const rest: TenantPolicy = { name: "", weight: others.weight, serviceTier: others.service_tier, slo: others.slo };
  return {
    tenantOf(authorization) {
      const key = bearerKey(authorization);
      return (key === undefined ? undefined : byKey.get(createHash("sha256").update(key).digest("hex"))) ?? rest;
    },
    modelSlo: (model) => models[model]?.slo ?? {},
  };
}
