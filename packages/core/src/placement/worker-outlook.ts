import { decodeStepMs, prefillMs, prefillStepCount, type StepCost } from "../cost/step-cost.ts";
import type { AttachedWorker } from "./cluster-view.ts";
import { type PredictionOptions, type ReckonedLoad, reckonLoad } from "./predict.ts";
import type { Reserved } from "./reservations.ts";
import { shareOf, type WorkStanding } from "./work-ledger.ts";

/** Most of a worker that prompts are believed to take from its decodes; beyond it a step's time has no sense any more. */
const SHARE_MAX = 0.95;

export interface OutlookOptions extends PredictionOptions {
  /** Tokens that workers compute in a step, at most. */
  readonly stepTokenCount: number;
  readonly fleet: FleetCost;
}

/** What one worker would make of a request: its predictions, from what it says its steps cost and what this router has asked of it. */
export class WorkerOutlook {
  readonly worker: AttachedWorker;
  readonly load: ReckonedLoad;
  /** Tokens of the prompt that it has. */
  readonly cachedTokenCount: number;
  readonly #cost: StepCost;
  readonly #work: WorkStanding;
  readonly #stepTokenCount: number;

  constructor(
    worker: AttachedWorker,
    reserved: Reserved,
    cachedTokenCount: number,
    work: WorkStanding,
    options: OutlookOptions,
  ) {
    this.worker = worker;
    this.load = reckonLoad(worker, reserved);
    this.cachedTokenCount = cachedTokenCount;
    this.#work = work;
    const { least, prompts } = options.fleet;
    const guessed = guessedCost(worker, options);
    const told = worker.load?.stepCost ?? guessed;
    // A decode worker that has computed no prompt is believed to take what the others take.
    const whole = told.promptTokenMs > 0 ? told : { ...told, ...(prompts ?? promptsOf(guessed)) };
    this.#cost = least === undefined ? whole : atLeast(whole, least);
    this.#stepTokenCount = options.stepTokenCount;
  }

  /** Of those that decode here; infinity when nobody has a target. */
  get strictestTbtMs(): number {
    return this.#work.strictestTbtMs;
  }

  /** Prompts before one that comes now: the more of what this router reckons and, right after a report, what the worker said of others'. */
  queueMs(): number {
    const { load, reservedAtReport } = this.worker;
    const foreign = Math.max(0, (load?.queuedPromptTokenCount ?? 0) - reservedAtReport.promptTokenCount);
    return this.#work.queueMs + this.#work.slowness * this.#cost.promptTokenMs * foreign;
  }

  /** To compute the prompt alone when so many of its tokens are there. */
  computeMs(promptTokenCount: number, thereCount: number): number {
    return this.#work.slowness * prefillMs(this.#cost, promptTokenCount, thereCount, this.#stepTokenCount);
  }

  /** What computing it adds to steps that run anyway. */
  besideMs(promptTokenCount: number, thereCount: number): number {
    const steps = prefillStepCount(promptTokenCount, thereCount, this.#stepTokenCount);
    return this.computeMs(promptTokenCount, thereCount) - this.#work.slowness * steps * this.#cost.fixedMs;
  }

  /** To compute it in steps that also decode what runs here. */
  computeBesideDecodesMs(promptTokenCount: number, thereCount: number): number {
    const decodeCount = this.load.sequenceCount;
    const room = Math.max(1, this.#stepTokenCount - decodeCount);
    const steps = prefillStepCount(promptTokenCount, thereCount, room);
    const besides = this.#cost.decodeMs * decodeCount + this.#cost.contextTokenMs * this.#contextTokenCount;
    const alone = prefillMs(this.#cost, promptTokenCount, thereCount, room);
    return this.#work.slowness * (alone + steps * besides);
  }

  /**
   * Mean gap between tokens with one more answer, of so much context, that joins after `joinsAfterMs`, while prompts of `addedMs` come on top of
   * those of late: where they take a share ρ of the time, a decode step takes d / (1 − ρ). Of the answers that run a share e^(−Δ/life) is still
   * there when it joins; all that were placed and have not begun are (Mooncake, FAST 2025, §6.2, with lives that are exponential).
   */
  tbtMs(contextTokenCount: number, addedMs: number, joinsAfterMs: number): number {
    const { decodingCount, decodeLifeMs, prefillShare, gapSlowness } = this.#work;
    const { sequenceCount } = this.load;
    const left = Math.min(decodingCount, sequenceCount) * (1 - Math.exp(-joinsAfterMs / decodeLifeMs));
    const stay = sequenceCount === 0 ? 1 : 1 - left / sequenceCount;
    const beside = stay * sequenceCount;
    const step = decodeStepMs(this.#cost, beside + 1, stay * this.#contextTokenCount + contextTokenCount);
    return (gapSlowness * step) / (1 - Math.min(SHARE_MAX, prefillShare + shareOf(addedMs)));
  }

  /** What one token of an answer with so much context adds to a step. */
  tokenMs(contextTokenCount: number): number {
    return this.#work.slowness * (this.#cost.decodeMs + this.#cost.contextTokenMs * contextTokenCount);
  }

  /** Of what this router placed, and of others' as the worker said. */
  get #contextTokenCount(): number {
    const own = this.#work.contextTokenCount;
    return Math.max(own, this.load.sequenceCount === 0 ? 0 : (this.worker.load?.contextTokenCount ?? 0));
  }
}

/** From the speeds that every worker measures, until its steps' cost is fitted. */
function guessedCost({ load }: AttachedWorker, options: PredictionOptions): StepCost {
  const tokensPerSecond = load?.prefillTokensPerSecond || options.prefillTokensPerSecond;
  const stepMs = load?.decodeStepMs || options.decodeStepMs;
  return {
    fixedMs: 0.8 * stepMs,
    promptTokenMs: 1_000 / tokensPerSecond,
    attentionMs: 0,
    decodeMs: 0.02 * stepMs,
    contextTokenMs: 0,
  };
}

const TERMS = ["fixedMs", "promptStepMs", "promptTokenMs", "attentionMs", "decodeMs", "contextTokenMs"] as const;
/** How much cheaper than the others a worker may say that it is. What is learnt from its first tokens corrects the rest. */
const CHEAPER_MAX = 4;

/** What prompts cost. */
type PromptCost = Pick<StepCost, "promptStepMs" | "promptTokenMs" | "attentionMs">;

/** What the workers of a model have in common, by what they say. */
export interface FleetCost {
  /** No worker is believed to be cheaper: a quarter of the median, term by term; undefined when too few say what theirs cost to tell who is odd. */
  readonly least: StepCost | undefined;
  /** Median of those that have computed prompts; undefined when none has. */
  readonly prompts: PromptCost | undefined;
}

export function fleetCostOf(workers: readonly AttachedWorker[]): FleetCost {
  const told = workers.flatMap(({ load }) => (load?.stepCost === undefined ? [] : [load.stepCost]));
  const prompting = told.filter(({ promptTokenMs }) => promptTokenMs > 0);
  return {
    least: told.length < 3 ? undefined : medianOf(told, 1 / CHEAPER_MAX),
    prompts: prompting.length === 0 ? undefined : promptsOf(medianOf(prompting, 1)),
  };
}

function medianOf(costs: readonly StepCost[], share: number): StepCost {
  const median = (term: (typeof TERMS)[number]): number => {
    const values = costs.map((cost) => cost[term] ?? 0).sort((a, b) => a - b);
    return share * (values[values.length >>> 1] ?? 0);
  };
  const [fixedMs = 0, promptStepMs = 0, promptTokenMs = 0, attentionMs = 0, decodeMs = 0, contextTokenMs = 0] =
    TERMS.map(median);
  return { fixedMs, promptStepMs, promptTokenMs, attentionMs, decodeMs, contextTokenMs };
}

function promptsOf({ promptStepMs = 0, promptTokenMs, attentionMs }: StepCost): PromptCost {
  return { promptStepMs, promptTokenMs, attentionMs };
}

function atLeast(cost: StepCost, least: StepCost): StepCost {
  return {
    fixedMs: Math.max(cost.fixedMs, least.fixedMs),
    promptStepMs: Math.max(cost.promptStepMs ?? 0, least.promptStepMs ?? 0),
    promptTokenMs: Math.max(cost.promptTokenMs, least.promptTokenMs),
    attentionMs: Math.max(cost.attentionMs, least.attentionMs),
    decodeMs: Math.max(cost.decodeMs, least.decodeMs),
    contextTokenMs: Math.max(cost.contextTokenMs, least.contextTokenMs),
  };
}
