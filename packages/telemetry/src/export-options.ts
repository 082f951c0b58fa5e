import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  ParentBasedSampler,
  type Sampler,
  TraceIdRatioBasedSampler,
} from "@opentelemetry/sdk-trace";

/** How spans leave, from the environment variables that OpenTelemetry names; the Rust side reads the same ones. */
export interface ExportOptions {
  readonly sampler: Sampler;
  /** Longest that an ended span waits for others to leave with. Larger: fewer messages; smaller: seen sooner. */
  readonly scheduledDelayMillis: number;
  /** Ended spans that may wait; more are dropped. */
  readonly maxQueueSize: number;
}

/** Throws, with the variable's name, for a value that is not understood. */
export function exportOptions(env: NodeJS.ProcessEnv): ExportOptions {
  return {
    sampler: samplerFromEnv(env.OTEL_TRACES_SAMPLER, env.OTEL_TRACES_SAMPLER_ARG),
    scheduledDelayMillis: countFromEnv(env, "OTEL_BSP_SCHEDULE_DELAY", 5_000),
    maxQueueSize: countFromEnv(env, "OTEL_BSP_MAX_QUEUE_SIZE", 8_192),
  };
}

function samplerFromEnv(name: string | undefined, argument: string | undefined): Sampler {
  switch (name || "parentbased_always_on") {
    case "always_on":
      return new AlwaysOnSampler();
    case "always_off":
      return new AlwaysOffSampler();
    case "traceidratio":
      return new TraceIdRatioBasedSampler(ratioFrom(argument));
    case "parentbased_always_on":
      return new ParentBasedSampler({ root: new AlwaysOnSampler() });
    case "parentbased_always_off":
      return new ParentBasedSampler({ root: new AlwaysOffSampler() });
    case "parentbased_traceidratio":
      return new ParentBasedSampler({ root: new TraceIdRatioBasedSampler(ratioFrom(argument)) });
    default:
      throw new Error(
        `OTEL_TRACES_SAMPLER is ${name}; use always_on, always_off or traceidratio, each also with parentbased_ before it`,
      );
  }
}

function ratioFrom(argument: string | undefined): number {
  const ratio = Number(argument || "1");
  if (ratio >= 0 && ratio <= 1) return ratio;
  throw new Error(`OTEL_TRACES_SAMPLER_ARG is ${argument}; use a number from 0 to 1`);
}

function countFromEnv(env: NodeJS.ProcessEnv, name: string, fallback: number): number {
  const text = env[name];
  if (!text) return fallback;
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new Error(`${name} is ${text}; use a whole number above 0`);
}
