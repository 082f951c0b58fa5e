import type { LocalCluster } from "@kvasir/cli";

/** How a request ended: `error` is one that is typed, `cut` one without an end of its own. */
export interface Ending {
  readonly kind: "right" | "wrong" | "error" | "cancelled" | "cut";
  readonly detail: string;
}

/** The answer of a cluster in which nothing else happens. */
export async function undisturbed(cluster: LocalCluster, body: object): Promise<string> {
  const response = await post(cluster, body);
  const answer = (await response.json()) as { choices: readonly [{ message: { content: string } }] };
  if (response.status !== 200) throw new Error(`an undisturbed request ended with ${JSON.stringify(answer)}`);
  return answer.choices[0].message.content;
}

function post(cluster: LocalCluster, body: object, signal?: AbortSignal): Promise<Response> {
  return fetch(`${cluster.gatewayUrl}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    ...(signal === undefined ? {} : { signal }),
  });
}

/** One streamed request, read to whatever end it has; `cancelAfter`: so many events later the client goes away. */
export async function request(
  cluster: LocalCluster,
  body: object,
  expected: string,
  cancelAfter?: number,
): Promise<Ending> {
  const away = new AbortController();
  let text = "";
  let events = 0;
  let ends = 0;
  let told: unknown;
  try {
    const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await post(cluster, streamed, away.signal);
    if (response.status !== 200) {
      const { error } = (await response.json()) as { error?: { code?: string; message?: string } };
      if (error?.message === undefined)
        return { kind: "wrong", detail: `status ${response.status} without a typed error` };
      return { kind: "error", detail: `${response.status} ${error.code}: ${error.message}` };
    }
    for await (const event of eventsOf(response)) {
      if (cancelAfter !== undefined && events++ >= cancelAfter) {
        away.abort();
        return { kind: "cancelled", detail: "" };
      }
      if (event === "[DONE]") {
        ends++;
        continue;
      }
      const { choices, error, kvasir, usage } = JSON.parse(event) as {
        choices?: readonly { delta?: { content?: string } }[];
        kvasir?: object;
        usage?: object;
        error?: { code?: string; message?: string };
      };
      if (error !== undefined) return { kind: "error", detail: `in the stream: ${error.code}: ${error.message}` };
      text += choices?.[0]?.delta?.content ?? "";
      if (kvasir !== undefined) told = { ...kvasir, usage };
    }
  } catch (error) {
    if (away.signal.aborted) return { kind: "cancelled", detail: "" };
    return { kind: "cut", detail: `cut after ${text.length} characters: ${String(error)}` };
  }
  if (ends !== 1) return { kind: "cut", detail: `${ends} ends after ${text.length} characters` };
  if (text === expected) return { kind: "right", detail: "" };
  const where = `wrong from character ${firstDifference(text, expected)} of ${expected.length}`;
  return { kind: "wrong", detail: `${where}: ${JSON.stringify({ ...body, messages: undefined, told })}` };
}

async function* eventsOf(response: Response): AsyncGenerator<string> {
  let buffer = "";
  for await (const part of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    buffer += part;
    for (let end = buffer.indexOf("\n\n"); end >= 0; end = buffer.indexOf("\n\n")) {
      yield buffer.slice("data: ".length, end);
      buffer = buffer.slice(end + 2);
    }
  }
}

function firstDifference(a: string, b: string): number {
  let index = 0;
  while (index < Math.min(a.length, b.length) && a[index] === b[index]) index++;
  return index;
}
