import { KvasirError } from "@kvasir/core";
import { type ExecuteRequest, type SamplingParams, SliceOutcome } from "@kvasir/proto";

interface DeviceSequence {
  readonly promptTokenCount: number;
  readonly sampling: SamplingParams | undefined;
  readonly blockIds: number[];
  position: number;
  stopped: boolean;
}

export interface DeviceResult {
  readonly sequenceId: bigint;
  readonly outcome: SliceOutcome;
  readonly token?: { tokenId: number; logprob?: number };
}

export const FAKE_VOCAB_SIZE = 1_000;

/** The token that the fake samples: it depends on what the real one's depends on, and on nothing else. */
export function fakeToken(promptTokenCount: number, seed: bigint, tokenIndex: number): number {
  return (promptTokenCount * 31 + Number(seed % 1_000n) * 17 + tokenIndex * 7 + 13) % FAKE_VOCAB_SIZE;
}

/** Sequences and steps as the contract tells them, without arithmetic. Refuses what the sidecar refuses. */
export class FakeDevice {
  readonly blockSize: number;
  readonly blockCount: number;
  readonly sequences = new Map<bigint, DeviceSequence>();
  promptTokensComputed = 0n;
  decodeTokensComputed = 0n;

  constructor(blockCount: number, blockSize: number) {
    this.blockCount = blockCount;
    this.blockSize = blockSize;
  }

  /** Runs one step; `touch` is told each block that is written. */
  step(request: ExecuteRequest, touch: (blockId: number, sequenceId: bigint) => void): DeviceResult[] {
    for (const sequenceId of request.droppedSequenceIds) this.sequences.delete(sequenceId);
    for (const start of request.starts) {
      if (this.sequences.has(start.sequenceId)) throw refused(`sequence ${start.sequenceId} starts twice`);
      this.sequences.set(start.sequenceId, {
        promptTokenCount: start.promptTokenCount,
        sampling: start.sampling,
        blockIds: [...start.blockIds],
        position: -1,
        stopped: false,
      });
    }
    return request.slices.map((slice) => {
      const { sequenceId, startPosition, tokenCount } = slice;
      const sequence = this.sequences.get(sequenceId);
      if (!sequence) throw refused(`slice of unknown sequence ${sequenceId}`);
      sequence.blockIds.push(...slice.appendedBlockIds);
      if (sequence.stopped) return { sequenceId, outcome: SliceOutcome.SKIPPED };
      // The caller vouches for the KV before the first slice, and for what it skips of the prompt.
      const isSkipping = startPosition > sequence.position && startPosition < sequence.promptTokenCount;
      if (sequence.position === -1 || isSkipping) sequence.position = startPosition;
      if (startPosition !== sequence.position) {
        throw refused(`sequence ${sequenceId} has ${sequence.position} tokens, the slice starts at ${startPosition}`);
      }
      const end = startPosition + tokenCount;
      if (Math.ceil(end / this.blockSize) > sequence.blockIds.length)
        throw refused(`sequence ${sequenceId} lacks blocks`);
      for (let token = startPosition; token < end; token++) {
        const blockId = sequence.blockIds[Math.floor(token / this.blockSize)] ?? -1;
        if (blockId < 0 || blockId >= this.blockCount) throw refused(`block ${blockId} does not exist`);
        touch(blockId, sequenceId);
      }
      sequence.position = end;
      const promptCount = Math.max(0, Math.min(tokenCount, sequence.promptTokenCount - startPosition));
      this.promptTokensComputed += BigInt(promptCount);
      this.decodeTokensComputed += BigInt(tokenCount - promptCount);
      if (!slice.sample) return { sequenceId, outcome: SliceOutcome.COMPUTED };
      return this.#sample(sequenceId, sequence);
    });
  }

  #sample(sequenceId: bigint, sequence: DeviceSequence): DeviceResult {
    const { sampling, promptTokenCount } = sequence;
    const tokenIndex = sequence.position - promptTokenCount;
    const tokenId = fakeToken(promptTokenCount, sampling?.seed ?? 0n, tokenIndex);
    const last = tokenIndex + 1 >= (sampling?.maxTokens ?? 1);
    sequence.stopped = last || (sampling?.stopTokenIds.includes(tokenId) ?? false);
    const token = sampling?.logprobs ? { tokenId, logprob: -1 } : { tokenId };
    return { sequenceId, outcome: sequence.stopped ? SliceOutcome.STOPPED : SliceOutcome.SAMPLED, token };
  }
}

function refused(message: string): KvasirError {
  return new KvasirError({ reason: "invalid_request", message });
}
