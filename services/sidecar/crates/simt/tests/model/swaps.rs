//! Blocks swapped between a simulated device and its host.

use crate::tiny;
use kvasir_cuda::{CudaBackend, CudaOptions, Device, DeviceError, Division, KvMemory, SwapPart};
use kvasir_engine::{
    Backend, BlockGroup, Engine, EngineOptions, KvDtype, SamplingParams, SequenceStart, Slice, StepPlan,
};
use kvasir_engine::{SwapDirection, SwapSpace, WeightFormat};
use kvasir_kernels::Cpu;
use kvasir_simt::SimtDevice;
use std::sync::Arc;

const LENGTH: u32 = 40;
const HOME: [u32; 4] = [5, 6, 7, 1];
const ELSEWHERE: [u32; 4] = [11, 12, 13, 20];
const OTHERS: [u32; 4] = [2, 3, 8, 9];

#[test]
fn a_copy_that_nobody_waited_for_shows() {
    let device = SimtDevice::new(1 << 20, 5);
    let (pool, host) = (
        device.allocate(96).expect("memory"),
        device.allocate_host(64).expect("memory"),
    );
    let part = |device_offset, host_offset, bytes| SwapPart {
        device_offset,
        host_offset,
        bytes,
    };
    device.write(&pool, 0, &[7; 64]).expect("written");
    let out = device
        .swap(SwapDirection::Out, &pool, &host, &[part(32, 0, 64)])
        .expect("it begins");
    // Somebody writes what is still being copied: the copy is not what it was.
    device.write(&pool, 32, &[8; 32]).expect("written");
    out.wait().expect("it is copied");
    let back = device
        .swap(SwapDirection::In, &pool, &host, &[part(0, 0, 64)])
        .expect("it begins");
    let mut found = [0; 32];
    let unwritten = Err(DeviceError::Failed("byte 0 of 32 read back was never written".into()));
    assert_eq!(device.read(&pool, 0, &mut found), unwritten);
    back.wait().expect("it is copied");
    device.read(&pool, 0, &mut found).expect("it is there");
    assert_eq!(found, [8; 32]);
    // What was never written is not written after it has been away.
    assert_eq!(device.read(&pool, 32, &mut found), unwritten);
    let beyond = device.swap(SwapDirection::In, &pool, &host, &[part(0, 32, 64)]).err();
    assert!(matches!(beyond, Some(DeviceError::Range { .. })), "{beyond:?}");
}

fn engine(config: &kvasir_model::ModelConfig) -> (Engine, SwapSpace) {
    let device: Arc<dyn Device> = Arc::new(SimtDevice::new(32 << 20, 3));
    let options = CudaOptions {
        kv_memory: KvMemory::Bytes(1 << 20),
        block_size: 16,
        division: Division::FAST,
        rows_max: 512,
        graphs: true,
    };
    let weights = tiny::weights(config);
    let transfers = device.another_stream().expect("a stream");
    let backend = CudaBackend::new(device, transfers, config.clone(), &weights, options).expect("a backend");
    let space = SwapSpace::new(Arc::clone(backend.pool()), 1 << 18).expect("slots");
    let options = EngineOptions {
        kv_bytes: 0,
        block_size: 16,
        kv_dtype: KvDtype::Bf16,
        shard_count: 1,
        threads: 1,
        step_token_max: 512,
        weights: WeightFormat::Stored,
    };
    let cpu = Arc::new(Cpu::new(1).expect("a thread"));
    let engine = Engine::with_backend(cpu, Box::new(backend), config.clone(), "test".into(), options);
    (engine.expect("an engine"), space)
}

fn started(sequence_id: u64, prompt_token_count: u32, blocks: &[u32]) -> SequenceStart {
    SequenceStart {
        sequence_id,
        prompt_token_count,
        block_ids: blocks.to_vec(),
        sampling: SamplingParams {
            max_tokens: 64,
            logprobs: true,
            top_logprobs: 5,
            ..SamplingParams::default()
        },
        ..SequenceStart::default()
    }
}

/// One slice that samples; the token, and the bits of the likeliest ones' log-probabilities.
fn say(engine: &mut Engine, starts: Vec<SequenceStart>, slice: Slice) -> (u32, Vec<(u32, u32)>) {
    let plan = StepPlan {
        starts,
        slices: vec![Slice { sample: true, ..slice }],
        ..StepPlan::default()
    };
    let output = engine.step(&plan).expect("a step");
    let token = output.results[0].token.clone().expect("a token");
    let tops = token
        .top_logprobs
        .iter()
        .map(|top| (top.token_id, top.logprob.to_bits()));
    (token.token_id, tops.collect())
}

fn slice(sequence_id: u64, start_position: u32, token_ids: Vec<u32>) -> Slice {
    Slice {
        sequence_id,
        start_position,
        token_count: token_ids.len().max(1) as u32,
        token_ids,
        ..Slice::default()
    }
}

fn begin(engine: &mut Engine, sequence_id: u64, blocks: &[u32]) -> u32 {
    let tokens = tiny::prompt(LENGTH as usize, sequence_id);
    let starts = vec![started(sequence_id, LENGTH, blocks)];
    say(engine, starts, slice(sequence_id, 0, tokens)).0
}

#[test]
fn a_sequence_that_was_away_goes_on_with_the_same_bits() {
    for config in tiny::families().iter().take(1) {
        let (mut engine, space) = engine(config);
        let first = begin(&mut engine, 1, &HOME);
        begin(&mut engine, 2, &OTHERS);
        let expected: Vec<_> = (0..6)
            .map(|i| say(&mut engine, vec![], slice(1, LENGTH + i, vec![])))
            .collect();
        let group = |block, slot, count| BlockGroup { block, slot, count };
        // Three tokens of the answer, the last block is partly written.
        let mut plan = StepPlan {
            dropped: vec![1],
            ..StepPlan::default()
        };
        engine.step(&plan).expect("forgotten");
        begin(&mut engine, 1, &HOME);
        for i in 0..3 {
            say(&mut engine, vec![], slice(1, LENGTH + i, vec![]));
        }
        // Another sequence's steps run while its blocks leave and come.
        let decode = |engine: &mut Engine, from: u32| {
            for i in 0..3 {
                say(engine, vec![], slice(2, LENGTH + from + i, vec![]));
            }
        };
        std::thread::scope(|scope| {
            let leaving = scope.spawn(|| space.copy(SwapDirection::Out, &[group(5, 1, 3), group(1, 0, 1)]));
            decode(&mut engine, 0);
            leaving.join().expect("no panic").expect("swapped out");
        });
        engine.step(&plan).expect("forgotten");
        begin(&mut engine, 3, &HOME);
        std::thread::scope(|scope| {
            let coming = scope.spawn(|| space.copy(SwapDirection::In, &[group(11, 1, 3), group(20, 0, 1)]));
            decode(&mut engine, 3);
            coming.join().expect("no panic").expect("swapped in");
        });
        plan.dropped = vec![3];
        engine.step(&plan).expect("forgotten");
        let said: Vec<u32> = std::iter::once(first)
            .chain(expected.iter().map(|token| token.0))
            .collect();
        let start = started(4, LENGTH + 3, &ELSEWHERE);
        let mut after = vec![say(&mut engine, vec![start], slice(4, LENGTH + 3, vec![said[3]]))];
        for i in 4..6 {
            after.push(say(&mut engine, vec![], slice(4, LENGTH + i, vec![])));
        }
        assert_eq!(after, expected[3..]);
    }
}
