import { RequestError } from "./http/openai-error.ts";
import { ChatRequest, CompletionRequest, checkRequest } from "./http/schema.ts";
import { type PreparedRequest, prepareChat, prepareCompletion, type ServedModel } from "./prepare.ts";

/** Checks a request's body and makes its prompt. */
export function prepareBody(
  model: ServedModel,
  endpoint: "chat" | "completion",
  body: object,
): Promise<PreparedRequest> {
  if (endpoint === "chat") {
    const request = checkRequest(ChatRequest, body);
    checkModel(model, request.model);
    return prepareChat(model, request);
  }
  const request = checkRequest(CompletionRequest, body);
  checkModel(model, request.model);
  return prepareCompletion(model, request);
}

function checkModel(model: ServedModel, wanted: string): void {
  if (wanted === model.name) return;
  const message = `model ${JSON.stringify(wanted)} is not served here; use ${JSON.stringify(model.name)}`;
  throw new RequestError(message, { param: "model", code: "model_not_found" });
}
