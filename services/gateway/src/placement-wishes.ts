import type { IncomingHttpHeaders } from "node:http";
import { ServiceClass } from "@kvasir/proto";
import { RequestError } from "./http/openai-error.ts";
import { objectivesOf, type RequestObjectives, type SloField } from "./objectives.ts";
import type { Policies, SloDefaults } from "./policies.ts";
import { tenantId, tenantKey } from "./tenant-scope.ts";

/** How a request stands beside others, and what its caller knows of it. */
export interface PlacementWishes {
  readonly objectives: RequestObjectives;
  /** Whose share it takes, 16 bytes. */
  readonly tenant: Uint8Array;
  readonly tenantWeight: number;
  readonly serviceClass: ServiceClass;
  /** Among the tenant's requests of its class, smaller first. */
  readonly priority: number;
  /** Of its conversation; empty: of none. */
  readonly sessionKey: Uint8Array;
  /** Of prompts with answers of like length; empty: told by the prompt's length. */
  readonly promptClass: Uint8Array;
}

/** The body's fields that say it. */
export interface WishFields {
  readonly slo: SloField | undefined;
  readonly serviceTier: ServiceTier | undefined;
  readonly priority: number;
  readonly sessionId: string | undefined;
  readonly promptCacheKey: string | undefined;
}

export type ServiceTier = "auto" | "default" | "flex" | "priority";

const CLASSES = {
  default: ServiceClass.DEFAULT,
  flex: ServiceClass.FLEX,
  priority: ServiceClass.PRIORITY,
} as const;
const SESSION_LENGTH_MAX = 256;
const NOTHING = new Uint8Array();

/**
 * What a request asks of its placement. Each target comes from the body, else a header, else its tenant's default, its model's, this
 * gateway's; `service_tier: "auto"`, or none, is its tenant's. A conversation is named by `session_id` or `x-session-id`, else by
 * `prompt_cache_key`, and prompts of a kind by `prompt_cache_key`, else the conversation.
 */
export function wishesOf(
  headers: IncomingHttpHeaders,
  fields: WishFields,
  model: string,
  secret: string,
  policies: Policies,
  fallback: SloDefaults,
): PlacementWishes {
  const policy = policies.tenantOf(headers.authorization);
  const tenant = tenantId(secret, headers.authorization, policy.name);
  const tier = fields.serviceTier ?? "auto";
  const session = fields.sessionId ?? sessionFromHeader(headers);
  const { promptCacheKey } = fields;
  const conversation = session ?? promptCacheKey;
  const kind = promptCacheKey ?? session;
  return {
    objectives: objectivesOf(headers, fields.slo, [policy.slo, policies.modelSlo(model), fallback]),
    tenant,
    tenantWeight: policy.weight,
    serviceClass: CLASSES[tier === "auto" ? policy.serviceTier : tier],
    priority: fields.priority,
    sessionKey: conversation === undefined ? NOTHING : tenantKey(tenant, "session", conversation),
    promptClass: kind === undefined ? NOTHING : tenantKey(tenant, "prompt", kind),
  };
}

/** OpenAI's name of a class. */
export function tierOf(serviceClass: ServiceClass): Exclude<ServiceTier, "auto"> {
  if (serviceClass === ServiceClass.PRIORITY) return "priority";
  return serviceClass === ServiceClass.FLEX ? "flex" : "default";
}

function sessionFromHeader(headers: IncomingHttpHeaders): string | undefined {
  const value = headers["x-session-id"];
  if (value === undefined || value === "") return undefined;
  const text = String(value);
  if (text.length <= SESSION_LENGTH_MAX) return text;
  const message = `header x-session-id has ${text.length} characters; use at most ${SESSION_LENGTH_MAX}`;
  throw new RequestError(message, { param: "x-session-id", code: "invalid_value" });
}
