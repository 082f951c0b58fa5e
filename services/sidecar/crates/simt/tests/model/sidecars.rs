//! Whole sidecar processes on simulated GPUs: a hand-over between two of them, and between one and a CPU.

#[allow(dead_code, reason = "the sidecar's own tests use the rest")]
#[path = "../../../sidecar/tests/common/mod.rs"]
mod common;

use common::*;
use kvasir_sidecar::proto::common::SamplingParams;
use kvasir_sidecar::proto::kernel::{FetchRequest, SequenceSlice, SequenceStart};
use kvasir_sidecar::proto::transfer::TokenLevel;
use std::path::Path;

const LENGTH: u32 = 40;
const SOURCE_BLOCKS: [u32; 5] = [3, 1, 7, 5, 0];
const SINK_BLOCKS: [u32; 5] = [10, 17, 11, 16, 12];
const TOKENS: u32 = 12;

async fn start_on(device: &str, model: &Path) -> Sidecar {
    let flags = ["--device", device, "--kv-dtype", "bf16", "--weights", "bf16"];
    Sidecar::start_with(model, &[&flags[..], &["--step-token-max", "128"]].concat()).await
}

/// A token, and the most likely ones in its place with their log-probabilities.
type Chosen = (u32, Vec<(u32, f32)>);

/// One slice that samples, and what came of it.
async fn sample(stream: &mut Execution, starts: Vec<SequenceStart>, slice: SequenceSlice) -> Chosen {
    let slice = SequenceSlice { sample: true, ..slice };
    let answer = stream.step(starts, vec![slice], vec![]).await.expect("a step");
    let token = answer.results[0].token.as_ref().expect("a sampled token");
    let tops = token.top_logprobs.iter().map(|top| (top.token_id, top.logprob));
    (token.token_id, tops.collect())
}

/// `first`, and tokens after it.
async fn decode(stream: &mut Execution, first: Chosen, is_known: bool) -> Vec<Chosen> {
    let mut all = vec![first];
    for index in 0..TOKENS {
        // A side that did not sample the first token is told it.
        let told = if index == 0 && !is_known {
            vec![all[0].0]
        } else {
            vec![]
        };
        let slice = SequenceSlice {
            token_count: 1,
            ..slice(1, LENGTH + index, told)
        };
        all.push(sample(stream, vec![], slice).await);
    }
    all
}

fn start_telling(blocks: &[u32]) -> SequenceStart {
    let sampling = SamplingParams {
        max_tokens: 64,
        logprobs: true,
        top_logprobs: 8,
        ..SamplingParams::default()
    };
    SequenceStart {
        sampling: Some(sampling),
        ..start(1, LENGTH, blocks)
    }
}

/// A prompt computed on one device in two chunks and handed to the other, which says the rest.
async fn hand_over(from: &Sidecar, to: &Sidecar) -> Vec<Chosen> {
    let ticket = from.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..3]).await;
    // By the profile that every sidecar has.
    let request = FetchRequest {
        levels: vec![TokenLevel {
            token_end: LENGTH,
            level: 1,
        }],
        codec_profile_id: from.about.codec_profiles[0].id.clone(),
        ..fetch_request(from.source(), ticket, 2, LENGTH, &SINK_BLOCKS)
    };
    let mut reports = to.fetch(request).await.expect("it begins");
    let mut prefill = from.execute().await;
    let tokens = prompt(1, LENGTH);
    let chunk = slice(1, 0, tokens[..17].to_vec());
    prefill
        .step(vec![start_telling(&SOURCE_BLOCKS)], vec![chunk], vec![])
        .await
        .expect("a chunk");
    let first = sample(&mut prefill, vec![], slice(1, 17, tokens[17..].to_vec())).await;
    let report = verified(&mut reports, LENGTH).await;
    assert!(
        report.complete && report.levels.iter().all(|level| level.level == 1),
        "{report:?}"
    );
    let mut stream = to.execute().await;
    stream
        .step(vec![start_telling(&SINK_BLOCKS)], vec![], vec![])
        .await
        .expect("it starts");
    let theirs = decode(&mut stream, first.clone(), false).await;
    if from.about.device == to.about.device {
        let own = decode(&mut prefill, first, true).await;
        assert_eq!(own, theirs, "the same KV gives the same tokens on either side");
    }
    theirs
}

/// Equal as far as bf16 can tell: where the tokens part, the expected one was within a tenth of a nat.
#[track_caller]
fn near(found: &[Chosen], expected: &[Chosen]) {
    let parts = found.iter().zip(expected).position(|(a, b)| a.0 != b.0);
    let end = parts.unwrap_or(found.len());
    assert!(end > 0, "the first token is {}, not {}", found[0].0, expected[0].0);
    if let Some(at) = parts {
        let logprob_of = |token: u32| found[at].1.iter().find(|(other, _)| *other == token).map(|top| top.1);
        let reach = logprob_of(found[at].0).zip(logprob_of(expected[at].0));
        assert!(
            reach.is_some_and(|(own, other)| own - other < 0.1),
            "token {at} is {}, not {}: {:?}",
            found[at].0,
            expected[at].0,
            found[at].1
        );
    }
    // Up to there the probabilities are near, so that a wrong block of KV would show.
    for (at, (a, b)) in found.iter().zip(expected).take(end).enumerate() {
        for ((token, logprob), (_, other)) in
            a.1.iter()
                .filter_map(|top| Some((top, b.1.iter().find(|b| b.0 == top.0)?)))
        {
            assert!(
                (logprob - other).abs() < 0.1,
                "token {token} at {at}: {logprob}, not {other}"
            );
        }
    }
}

#[tokio::test]
async fn kv_goes_from_gpu_to_gpu_and_from_gpu_to_cpu() {
    let model = model();
    let all = ["cuda:0", "auto", "cpu", "cpu"].map(|device| start_on(device, model.path()));
    let [gpu, other_gpu, cpu, other_cpu] = all;
    let (gpu, other_gpu, cpu, other_cpu) = tokio::join!(gpu, other_gpu, cpu, other_cpu);
    assert_eq!(gpu.about.device, "simulated device");
    assert_eq!(other_gpu.about.device, "simulated device");
    assert!(cpu.about.device.starts_with("cpu"), "{}", cpu.about.device);
    let expected = hand_over(&cpu, &other_cpu).await;
    near(&hand_over(&gpu, &other_gpu).await, &expected);
    let (third_gpu, third_cpu) = tokio::join!(start_on("cuda:1", model.path()), start_on("cpu", model.path()));
    near(&hand_over(&third_gpu, &third_cpu).await, &expected);
}

#[tokio::test]
async fn a_sequence_on_a_gpu_goes_to_the_host_and_comes_back_while_another_one_runs() {
    let model = model();
    let flags = ["--device", "cuda:0", "--kv-dtype", "bf16", "--weights", "bf16"];
    let flags = [&flags[..], &["--step-token-max", "128", "--swap-bytes", "256KiB"]].concat();
    let sidecar = Sidecar::start_with(model.path(), &flags).await;
    let mut stream = sidecar.execute().await;
    let first = sample_prompt(&mut stream, &SOURCE_BLOCKS).await;
    let expected = decode(&mut stream, first.clone(), true).await;
    stream.step(vec![], vec![], vec![1]).await.expect("forgotten");
    assert_eq!(sample_prompt(&mut stream, &SOURCE_BLOCKS).await, first);
    let gone = sidecar
        .swap(swap_out(1, &SOURCE_BLOCKS[..3]))
        .await
        .expect("swapped out");
    // Somebody else gets the blocks, and says something while the first one comes back.
    stream.step(vec![], vec![], vec![1]).await.expect("forgotten");
    let other = slice(2, 0, prompt(2, LENGTH));
    sample(&mut stream, vec![start(2, LENGTH, &SOURCE_BLOCKS)], other).await;
    let back = sidecar.swap(swap_in(2, &gone.slot_ids, &SINK_BLOCKS[..3]));
    let one = SequenceSlice {
        token_count: 1,
        ..slice(2, LENGTH, vec![])
    };
    let (back, _) = tokio::join!(back, sample(&mut stream, vec![], one));
    assert_eq!(back.expect("swapped in").data_bytes, gone.data_bytes);
    stream
        .step(vec![start_telling(&SINK_BLOCKS)], vec![], vec![])
        .await
        .expect("it starts");
    assert_eq!(decode(&mut stream, first, false).await, expected);
}

/// A prompt as a whole, and its first token.
async fn sample_prompt(stream: &mut Execution, blocks: &[u32]) -> Chosen {
    sample(stream, vec![start_telling(blocks)], slice(1, 0, prompt(1, LENGTH))).await
}
