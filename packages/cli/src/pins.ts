import { readFileSync } from "node:fs";
import { defineOptions, runMain, TLS_OPTIONS } from "@kvasir/config";
import { CLUSTER_OPTIONS, connectCluster } from "./connect-cluster.ts";

const ANSWER_MAX_MS = 30_000;

const options = defineOptions(
  "kvasir pins",
  "keeps prompts in the stores; without flags it lists those that are kept",
  {
    request: {
      type: "string",
      env: "KVASIR_PIN_REQUEST",
      help: "JSON file with the body of a chat or completion request whose prompt is to be kept.",
    },
    key: { type: "string", env: "KVASIR_PIN_KEY", help: "API key with which the prompt is asked for. Default: none." },
    ttlSeconds: {
      type: "integer",
      env: "KVASIR_PIN_TTL_SECONDS",
      min: 1,
      help: "How long. Default: until it is removed.",
    },
    remove: { type: "string", env: "KVASIR_PIN_REMOVE", help: "Id of a pin that is to end." },
    ...CLUSTER_OPTIONS,
    ...TLS_OPTIONS,
  },
);

interface Pin {
  readonly id: string;
  readonly model: string;
  readonly tenant_scope: string;
  readonly prompt_tokens: number;
  readonly blocks: number;
  readonly expires_at: string | null;
}

await runMain(options, async ({ request, key, ttlSeconds, remove, ...values }) => {
  const { state } = await connectCluster(values);
  try {
    const [gateway] = await state.list("gateway");
    if (gateway === undefined) throw new Error("no gateway is registered in this cluster; start one with npm run up");
    const url = `http://${gateway.adminAddress}/cache/pins`;
    if (remove !== undefined) {
      await answerOf(fetch(`${url}/${encodeURIComponent(remove)}`, { method: "DELETE", signal: soon() }));
      process.stdout.write(`${remove} is kept no more\n`);
    } else if (request !== undefined) {
      const body = { ...(JSON.parse(readFileSync(request, "utf8")) as object), ttl_seconds: ttlSeconds };
      const headers = key === undefined ? {} : { authorization: `Bearer ${key}` };
      const pin = await answerOf<Pin>(
        fetch(url, { method: "POST", headers, body: JSON.stringify(body), signal: soon() }),
      );
      process.stdout.write(`${line(pin)}\n`);
    } else {
      const { pins } = await answerOf<{ readonly pins: readonly Pin[] }>(fetch(url, { signal: soon() }));
      process.stdout.write(pins.length === 0 ? "nothing is kept\n" : `${pins.map(line).join("\n")}\n`);
    }
  } finally {
    await state.close();
  }
});

function soon(): AbortSignal {
  return AbortSignal.timeout(ANSWER_MAX_MS);
}

/** Throws, with the gateway's words, for what it refuses. */
async function answerOf<T>(asked: Promise<Response>): Promise<T> {
  const response = await asked;
  const answer = (await response.json()) as { readonly error?: { readonly message: string } };
  if (!response.ok) throw new Error(answer.error?.message ?? `the gateway answered ${response.status}`);
  return answer as T;
}

function line({ id, model, tenant_scope, prompt_tokens, blocks, expires_at }: Pin): string {
  const until = expires_at === null ? "until it is removed" : `until ${expires_at}`;
  return `${id}  ${model}, tenant ${tenant_scope}: ${prompt_tokens} tokens, ${blocks} blocks, ${until}`;
}
