import type { ModelShares, SharesSnapshot } from "@kvasir/core";

/** Reads what a router left in Redis, where anybody may write; throws what does not fit. */
export function sharesFromText(text: string): readonly ModelShares[] {
  const value: unknown = JSON.parse(text);
  return listOf(value, "the text").map((entry) => {
    const { model, shares } = objectOf(entry, "an entry");
    if (typeof model !== "string") throw new Error(`model is ${JSON.stringify(model)}, no text`);
    return { model, shares: snapshotFrom(objectOf(shares, "shares")) };
  });
}

function snapshotFrom({ floor, tenants }: Readonly<Record<string, unknown>>): SharesSnapshot {
  return {
    floor: tokensOf(floor),
    tenants: listOf(tenants, "tenants").map((entry) => {
      const { tenant, counter, isWaiting } = objectOf(entry, "a tenant");
      if (typeof tenant !== "string") throw new Error(`tenant is ${JSON.stringify(tenant)}, no text`);
      return { tenant, counter: tokensOf(counter), isWaiting: isWaiting === true };
    }),
  };
}

function tokensOf(value: unknown): number {
  if (typeof value === "number" && Number.isFinite(value)) return value;
  throw new Error(`a counter is ${JSON.stringify(value)}, no number of tokens`);
}

function listOf(value: unknown, what: string): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw new Error(`${what} is no list`);
}

function objectOf(value: unknown, what: string): Readonly<Record<string, unknown>> {
  if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  throw new Error(`${what} is no object`);
}
