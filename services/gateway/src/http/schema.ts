import { KV_ACCURACIES } from "@kvasir/core";
import { z } from "zod";
import { RequestError } from "./openai-error.ts";

const TOKENS_MAX = 2 ** 31 - 1;
const STOPS_MAX = 16;
const DOCUMENTS_MAX = 1024;
const IDS_MAX = 256;
/** As OpenAI's. */
const CHOICES_MAX = 128;
const GUIDED_CHOICES_MAX = 1024;

const Stop = z.string().min(1, "is empty; give at least one character").max(1024);
const Document = z.union([z.string().min(1), z.strictObject({ title: z.string().nullish(), text: z.string().min(1) })]);

const Penalty = z.number().min(-2).max(2);
const TokenId = z.int().nonnegative().max(TOKENS_MAX);

const JsonSchema = z.record(z.string(), z.unknown());
const Choice = z.array(z.string().min(1, "is empty; give at least one character")).min(1).max(GUIDED_CHOICES_MAX);
const ResponseFormat = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("text") }),
  z.strictObject({ type: z.literal("json_object") }),
  z.strictObject({
    type: z.literal("json_schema"),
    json_schema: z.strictObject({
      name: z.string(),
      description: z.string().nullish(),
      schema: JsonSchema,
      // Schemas are always kept to.
      strict: z.boolean().nullish(),
    }),
  }),
]);

const Seed = z.union(
  [
    z.int(),
    z
      .bigint()
      .min(-(2n ** 63n))
      .max(2n ** 64n - 1n),
  ],
  {
    error: "use a whole number from -2^63 to 2^64 - 1",
  },
);

/** Of a request's latency, in milliseconds. */
const TargetMs = z.number().gt(0).max(3_600_000);

/** Of a conversation or a kind of prompt. */
const Name = z.string().min(1).max(256);

/** Fields of both endpoints. `null` means absent, as OpenAI's clients send it. */
const COMMON = {
  model: z.string().min(1),
  max_tokens: z.int().min(1).max(TOKENS_MAX).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z.int().min(-1).max(TOKENS_MAX).nullish(),
  seed: Seed.nullish(),
  stop: z.union([Stop, z.array(Stop).max(STOPS_MAX)]).nullish(),
  ignore_eos: z.boolean().nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ include_usage: z.boolean().nullish() }).nullish(),
  cache_salt: z.string().min(1).max(256).nullish(),
  kvasir: z
    .strictObject({
      slo: z
        .strictObject({
          ttft_ms: TargetMs.nullish(),
          tpot_ms: TargetMs.nullish(),
          on_miss: z.enum(["reject", "best_effort"]).nullish(),
        })
        .nullish(),
      kv_accuracy: z.enum(KV_ACCURACIES).nullish(),
    })
    .nullish(),
  service_tier: z.enum(["auto", "default", "flex", "priority"]).nullish(),
  priority: z
    .int()
    .min(-(2 ** 31))
    .max(2 ** 31 - 1)
    .nullish(),
  prompt_cache_key: Name.nullish(),
  session_id: Name.nullish(),
  // Without effect here.
  user: z.string().nullish(),
  metadata: z.record(z.string(), z.unknown()).nullish(),
  presence_penalty: Penalty.nullish(),
  frequency_penalty: Penalty.nullish(),
  logit_bias: z.record(z.string().regex(/^\d{1,9}$/, "is no token id"), z.number().min(-100).max(100)).nullish(),
  n: z.int().min(1).max(CHOICES_MAX).nullish(),
  // As vLLM names them.
  min_p: z.number().min(0).max(1).nullish(),
  typical_p: z.number().gt(0).max(1).nullish(),
  repetition_penalty: z.number().gt(0).max(2).nullish(),
  min_tokens: z.int().min(0).max(TOKENS_MAX).nullish(),
  stop_token_ids: z.array(TokenId).max(IDS_MAX).nullish(),
  bad_words: z.array(z.string().min(1).max(1024)).max(IDS_MAX).nullish(),
  include_stop_str_in_output: z.boolean().nullish(),
  response_format: ResponseFormat.nullish(),
  guided_json: z.union([z.string(), JsonSchema]).nullish(),
  guided_regex: z.string().min(1).nullish(),
  guided_choice: Choice.nullish(),
  structured_outputs: z
    .strictObject({
      json: z.union([z.string(), JsonSchema]).nullish(),
      regex: z.string().min(1).nullish(),
      choice: Choice.nullish(),
      json_object: z.boolean().nullish(),
    })
    .nullish(),
  prompt_logprobs: z.int().min(0).max(20).nullish(),
};

const Content = z.union([z.string(), z.array(z.strictObject({ type: z.literal("text"), text: z.string() })).min(1)]);

/** What an answer carries beside its text: OpenAI's clients send an answer back as it came. Only the empty value says nothing. */
const ANSWER_EXTRAS = {
  refusal: z.null().optional(),
  annotations: z.array(z.unknown()).max(0).nullish(),
  audio: z.null().optional(),
  function_call: z.null().optional(),
  tool_calls: z.array(z.unknown()).max(0).nullish(),
};

export const ChatRequest = z.strictObject({
  ...COMMON,
  messages: z
    .array(
      z.strictObject({
        role: z.enum(["system", "developer", "user", "assistant"]),
        content: Content,
        name: z.string().nullish(),
        ...ANSWER_EXTRAS,
      }),
    )
    .min(1),
  max_completion_tokens: z.int().min(1).max(TOKENS_MAX).nullish(),
  documents: z.array(Document).max(DOCUMENTS_MAX).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  store: z.literal(false).nullish(),
});
export type ChatRequest = z.infer<typeof ChatRequest>;

export const CompletionRequest = z.strictObject({
  ...COMMON,
  prompt: z.union([z.string(), z.array(z.string()).length(1), z.array(z.int().nonnegative()).min(1)]),
  logprobs: z.int().min(0).max(20).nullish(),
  echo: z.boolean().nullish(),
  best_of: z.literal(1).nullish(),
});
export type CompletionRequest = z.infer<typeof CompletionRequest>;

/** Checks a body; the first thing wrong is refused with the field's path in `param`. */
export function checkRequest<S extends z.ZodType>(schema: S, body: object): z.infer<S> {
  const checked = schema.safeParse(body);
  if (checked.success) return checked.data;
  const issue = deepest(checked.error.issues[0]);
  if (issue?.code === "unrecognized_keys") {
    const param = [...issue.path, issue.keys[0]].join(".");
    throw new RequestError(`${param} is not supported; remove it`, { param, code: "unsupported_field" });
  }
  const param = issue?.path.join(".") || "body";
  throw new RequestError(`${param}: ${issue?.message ?? "is wrong"}`, { param, code: "invalid_value" });
}

type Issue = z.core.$ZodIssue;

/** Of a union that no member fits, the complaint that got furthest says most. */
function deepest(issue: Issue | undefined): Issue | undefined {
  if (issue?.code !== "invalid_union") return issue;
  let best: Issue | undefined;
  for (const branch of issue.errors) {
    const inner = deepest(branch[0]);
    if (inner !== undefined && inner.path.length > (best?.path.length ?? 0)) best = inner;
  }
  if (best === undefined) return issue;
  return { ...best, path: [...issue.path, ...best.path] };
}
