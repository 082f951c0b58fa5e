import { writeFileSync } from "node:fs";
import { type DescribeClusterResponse, RouterService } from "@kvasir/proto";
import { createClient, PLAIN, type Transport, transportFrom } from "@kvasir/rpc";
import { type ClusterValues, connectCluster } from "../connect-cluster.ts";
import { OPERATOR } from "../local-cluster/local-cluster.ts";
import { measureSteps } from "./measure-steps.ts";

export interface StepProfileValues extends ClusterValues {
  readonly url: string;
  readonly model: string;
  readonly out: string;
  readonly promptTokens: number;
}

const ANSWER_MAX_MS = 5_000;
const SILENT = { info: () => undefined, warn: () => undefined };

/** Measures what steps cost on a running cluster, and keeps it as a profile for replay and plan. */
export async function writeStepProfile(values: StepProfileValues, say: (line: string) => void): Promise<void> {
  const { state, tls } = await connectCluster(values);
  try {
    const transport = tls === undefined ? PLAIN : transportFrom(tls, OPERATOR, SILENT);
    const addresses = (await state.list("router")).map(({ address }) => address);
    if (addresses.length === 0) throw new Error("no router is registered; start a cluster with npm run up");
    const { url, model, promptTokens: promptTokenMax } = values;
    say(`measuring ${model} at ${url}; it should have nothing else to do`);
    const describe = () => describeByLeader(addresses, transport);
    const profile = await measureSteps({ url, model, describe, seed: Date.now() % 2 ** 30, promptTokenMax });
    writeFileSync(values.out, `${JSON.stringify(profile, undefined, 2)}\n`);
    say(`${values.out} is made; use it with kvasir replay TRACE --sim --profile ${values.out}, or kvasir plan`);
  } finally {
    await state.close();
  }
}

async function describeByLeader(addresses: readonly string[], transport: Transport): Promise<DescribeClusterResponse> {
  const answers = await Promise.all(
    addresses.map(async (address) => {
      const client = createClient(RouterService, address, transport);
      try {
        return await client.describeCluster({}, { deadlineMs: ANSWER_MAX_MS });
      } finally {
        client.channel.close();
      }
    }),
  );
  const [leader] = answers.sort((a, b) => Number(b.leaderToken - a.leaderToken));
  if (leader === undefined) throw new Error("no router answers");
  return leader;
}
