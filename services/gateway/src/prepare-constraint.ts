import type { MessageInitShape } from "@bufbuild/protobuf";
import { KvasirError } from "@kvasir/core";
import type { ConstraintSchema } from "@kvasir/proto";
import { RequestError } from "./http/openai-error.ts";
import type { ChatRequest, CompletionRequest } from "./http/schema.ts";

/** What the whole text of an answer must match, with the field of the request that says so. */
export interface FieldConstraint {
  readonly field: string;
  readonly kind: NonNullable<MessageInitShape<typeof ConstraintSchema>["kind"]>;
}

/** The one constraint of a request, under OpenAI's or vLLM's name; a second one is refused. */
export function prepareConstraint(request: ChatRequest | CompletionRequest): FieldConstraint | undefined {
  const [first, second] = constraints(request);
  if (second !== undefined) {
    const message = `${second.field} is given beside ${first?.field}; a text is held to one of them`;
    throw new RequestError(message, { param: second.field, code: "invalid_value" });
  }
  return first;
}

function constraints(request: ChatRequest | CompletionRequest): FieldConstraint[] {
  const found: FieldConstraint[] = [];
  const format = request.response_format;
  if (format?.type === "json_object") {
    found.push({ field: "response_format", kind: { case: "jsonObject", value: true } });
  } else if (format?.type === "json_schema") {
    const { schema } = format.json_schema;
    found.push({ field: "response_format.json_schema.schema", kind: { case: "jsonSchema", value: text(schema) } });
  }
  const own = {
    json: request.guided_json,
    regex: request.guided_regex,
    choice: request.guided_choice,
    json_object: undefined,
  };
  for (const [options, prefix] of [
    [own, "guided_"],
    [request.structured_outputs ?? {}, "structured_outputs."],
  ] as const) {
    const { json, regex, choice } = options;
    if (json != null) found.push({ field: `${prefix}json`, kind: { case: "jsonSchema", value: text(json) } });
    if (regex != null) found.push({ field: `${prefix}regex`, kind: { case: "regex", value: regex } });
    if (choice != null) found.push({ field: `${prefix}choice`, kind: { case: "choice", value: { texts: choice } } });
    if (options.json_object === true) {
      found.push({ field: `${prefix}json_object`, kind: { case: "jsonObject", value: true } });
    }
  }
  return found;
}

/** A schema as text; vLLM takes it as text too. */
function text(schema: string | object): string {
  if (typeof schema === "string") return schema;
  // Bodies have their longest integers as bigint.
  return JSON.stringify(schema, (_, value: unknown) => (typeof value === "bigint" ? Number(value) : value));
}

/** A sidecar's complaint about the constraint, under the name that the client used. */
export function constraintError(error: unknown, constraint: FieldConstraint | undefined): unknown {
  const theirs = error instanceof KvasirError && error.reason === "invalid_request" && error.field === "constraint";
  if (!theirs || constraint === undefined) return error;
  const { field } = constraint;
  const message = error.message.replace(/^constraint:? /, "");
  return new RequestError(`${field}: ${message}`, { param: field, code: "invalid_value" });
}
