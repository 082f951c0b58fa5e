import { expect } from "vitest";
import type { SliceResult, StepPlan } from "../events.ts";
import { reused, STOP_TOKEN, type World } from "./world.ts";

interface DeviceSequence {
  blockIds: number[];
  position: number;
  promptTokenCount: number;
  stopped: boolean;
  samples: number;
}

/** What the sidecar would do, and would refuse: position gaps, missing blocks, unknown sequences, two owners of a block in use. */
export class ModelDevice {
  readonly known = new Map<number, DeviceSequence>();
  readonly queue: StepPlan[] = [];
  readonly chunkEnds = new Map<number, number>();
  /** Of which text up to there the KV lies where: `block:slot`. */
  readonly content = new Map<string, string>();
  /** Sampled here, by sequence. */
  readonly sampled = new Map<number, number[]>();
  readonly world: World;

  constructor(world: World) {
    this.world = world;
  }

  /** What has to lie at a position of a sequence: its tenant's KV of the tokens up to there. */
  key(sequenceId: number, position: number): string {
    const tokens = this.world.tokensOf(sequenceId);
    expect(position, `position of sequence ${sequenceId}`).toBeLessThan(tokens.length);
    return `${this.world.tenants.get(sequenceId)}:${tokens.slice(0, position + 1)}`;
  }

  write(sequenceId: number, blockIds: readonly number[], begin: number, end: number): void {
    const { blockSize } = this.world;
    for (let position = begin; position < end; position++) {
      const place = `${blockIds[Math.floor(position / blockSize)]}:${position % blockSize}`;
      this.content.set(place, this.key(sequenceId, position));
    }
  }

  expectWritten(sequenceId: number, blockIds: readonly number[], end: number): void {
    const { blockSize } = this.world;
    for (let position = 0; position < end; position++) {
      const place = `${blockIds[Math.floor(position / blockSize)]}:${position % blockSize}`;
      expect(this.content.get(place), `position ${position}`).toBe(this.key(sequenceId, position));
    }
  }

  answer(random: () => number): { stepId: number; results: SliceResult[] } | undefined {
    const plan = this.queue.shift();
    if (plan === undefined) return undefined;
    for (const id of plan.droppedSequenceIds) expect(this.known.delete(id), `drop of unknown ${id}`).toBe(true);
    for (const { sourceBlockId, targetBlockId, tokenCount } of plan.copies) {
      for (let slot = 0; slot < tokenCount; slot++) {
        const found = this.content.get(`${sourceBlockId}:${slot}`);
        expect(found).toBeDefined();
        this.content.set(`${targetBlockId}:${slot}`, found ?? "");
      }
      if (tokenCount === this.world.blockSize) reused.copied++;
    }
    for (const start of plan.starts) {
      expect(this.known.has(start.sequenceId)).toBe(false);
      this.known.set(start.sequenceId, {
        blockIds: [...start.blockIds],
        position: this.world.firstPosition(start.sequenceId),
        promptTokenCount: start.promptTokenCount,
        stopped: false,
        samples: this.world.samplesBefore(start.sequenceId),
      });
    }
    const results = plan.slices.map((slice): SliceResult => {
      const sequence = this.known.get(slice.sequenceId);
      const spec = this.world.specs.get(slice.sequenceId);
      if (!sequence || !spec) throw new Error(`slice of unknown sequence ${slice.sequenceId}`);
      sequence.blockIds.push(...slice.appendedBlockIds);
      if (sequence.stopped) return { sequenceId: slice.sequenceId, outcome: "skipped" };
      expect(slice.startPosition).toBe(this.world.nextPosition(slice.sequenceId, sequence.position));
      if (slice.startPosition > sequence.position) reused.jumped++;
      sequence.position = slice.startPosition;
      this.expectWritten(slice.sequenceId, sequence.blockIds, slice.startPosition);
      this.write(slice.sequenceId, sequence.blockIds, slice.startPosition, slice.startPosition + slice.tokenCount);
      sequence.position += slice.tokenCount;
      expect(sequence.blockIds.length * this.world.blockSize).toBeGreaterThanOrEqual(sequence.position);
      if (!slice.sample) return { sequenceId: slice.sequenceId, outcome: "computed" };
      const tokenId = random() < 0.15 ? STOP_TOKEN : 1;
      sequence.samples++;
      this.sampled.set(slice.sequenceId, [...(this.sampled.get(slice.sequenceId) ?? []), tokenId]);
      sequence.stopped = tokenId === STOP_TOKEN || sequence.samples >= spec.maxTokens;
      const outcome = sequence.stopped ? "stopped" : "sampled";
      return { sequenceId: slice.sequenceId, outcome, token: { tokenId, topLogprobs: [] } };
    });
    return { stepId: plan.stepId, results };
  }
}
