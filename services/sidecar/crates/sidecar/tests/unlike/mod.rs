//! Hand-overs between real sidecars that keep KV differently: shards, block sizes, element types.

mod deadlines;
mod pools;

use std::path::Path;

use crate::common::*;
use kvasir_model::testing::TestModel;
use kvasir_sidecar::proto::common::{ErrorReason, KvConversion};
use kvasir_sidecar::proto::kernel::SequenceSlice;
use tempfile::TempDir;

const LENGTH: u32 = 100;
const OUTPUT: u32 = 8;
const CHUNK: u32 = 40;

/// Eight query heads over four KV heads.
fn model_of_four_heads() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    TestModel {
        layers: 4,
        heads: 8,
        kv_heads: 4,
        head_size: 8,
        ..TestModel::default()
    }
    .write_hugging_face(directory.path())
    .expect("a model on disk");
    directory
}

struct Side {
    sidecar: Sidecar,
    execution: Execution,
    block_size: u32,
}

impl Side {
    async fn start(model: &Path, shards: u32, block_size: u32, dtype: &str) -> Self {
        let (shards, block) = (shards.to_string(), block_size.to_string());
        let flags = ["--shards", &shards, "--block-size", &block, "--kv-dtype", dtype];
        let sidecar = Sidecar::start_with(model, &flags).await;
        let layout = sidecar.about.layout.as_ref().expect("a layout");
        assert_eq!(
            (layout.shard_count.to_string(), layout.block_size),
            (shards, block_size)
        );
        assert_eq!(sidecar.about.transfer_addresses.len() as u32, layout.shard_count);
        Self {
            execution: sidecar.execute().await,
            sidecar,
            block_size,
        }
    }

    /// Blocks of the sequence computed here come from the front of the pool, those of a pulled one follow, both in reverse.
    fn blocks(&self, pulled: bool) -> Vec<u32> {
        let count = (LENGTH + OUTPUT).div_ceil(self.block_size);
        let first = if pulled { count } else { 0 };
        (first..first + count).rev().collect()
    }

    /// Computes the prompt in chunks as sequence 1 and answers with its output.
    async fn generate(&mut self) -> Vec<u32> {
        let tokens = prompt(3, LENGTH);
        let blocks = self.blocks(false);
        let mut starts = vec![start(1, LENGTH, &blocks)];
        let mut answer = None;
        for (index, chunk) in tokens.chunks(CHUNK as usize).enumerate() {
            let begin = index as u32 * CHUNK;
            let last = SequenceSlice {
                sample: begin + chunk.len() as u32 == LENGTH,
                ..slice(1, begin, chunk.to_vec())
            };
            let step = self.execution.step(std::mem::take(&mut starts), vec![last], vec![]);
            answer = Some(step.await.expect("a chunk"));
        }
        let first = sampled(&answer.expect("an answer"));
        let rest = self.execution.decode(1, LENGTH, None, OUTPUT - 1).await;
        [vec![first], rest].concat()
    }

    /// Goes on from pulled KV, as a sequence that is dropped afterwards.
    async fn go_on(&mut self, sequence_id: u64, first: u32) -> Vec<u32> {
        let blocks = self.blocks(true);
        let starting = self
            .execution
            .step(vec![start(sequence_id, LENGTH, &blocks)], vec![], vec![]);
        starting.await.expect("it starts");
        let rest = self
            .execution
            .decode(sequence_id, LENGTH, Some(first), OUTPUT - 1)
            .await;
        let dropping = self.execution.step(vec![], vec![], vec![sequence_id]);
        dropping.await.expect("it is dropped");
        [vec![first], rest].concat()
    }
}

#[tokio::test]
async fn any_shards_and_blocks_hand_over_to_any_others_and_generate_the_same_tokens() {
    let model = model_of_four_heads();
    let mut sides = Vec::new();
    for shards in [1, 2, 4] {
        for block_size in [16, 32, 64] {
            sides.push(Side::start(model.path(), shards, block_size, "f32").await);
        }
    }
    let expected = sides[0].generate().await;
    for side in &mut sides[1..] {
        assert_eq!(side.generate().await, expected, "shards and blocks do not show");
    }
    let count = sides.len();
    let mut lease = 0;
    for source in 0..count {
        lease += 1;
        let from = &sides[source];
        let prompt_blocks = &from.blocks(false)[..LENGTH.div_ceil(from.block_size) as usize];
        let ticket = from.sidecar.publish(lease, 1, LENGTH, prompt_blocks).await;
        let (offer, bytes_per_token) = (from.sidecar.source(), from.sidecar.about.kv_bytes_per_token);
        for (sink, side) in sides.iter_mut().enumerate() {
            let id = (source * count + sink) as u8 + 10;
            let blocks = side.blocks(true);
            let request = fetch_request(offer.clone(), ticket.clone(), id, LENGTH, &blocks);
            let reports = side.sidecar.fetch(request).await.expect("it begins");
            let report = outcome(reports).await.expect("it ends well");
            assert_eq!(report.data_bytes, u64::from(LENGTH) * u64::from(bytes_per_token));
            assert_eq!(report.conversion(), KvConversion::None);
            let tokens = side.go_on(u64::from(id), expected[0]).await;
            assert_eq!(tokens, expected, "from {:?} to {:?}", offer.layout, side.sidecar.about);
        }
    }
    for side in &sides {
        let stats = side.sidecar.stats().await;
        assert_eq!(
            stats.prompt_tokens_computed,
            u64::from(LENGTH),
            "nothing was computed twice"
        );
        assert_eq!(stats.frames_refused, 0);
    }
}

#[tokio::test]
async fn element_types_convert_and_the_fetch_says_how() {
    let model = model_of_four_heads();
    let mut sides = Vec::new();
    for (dtype, shards, block_size) in [("f32", 2, 16), ("f16", 1, 32), ("bf16", 4, 64)] {
        sides.push(Side::start(model.path(), shards, block_size, dtype).await);
    }
    let mut firsts = Vec::new();
    for side in &mut sides {
        firsts.push(side.generate().await[0]);
    }
    let (none, widened, rounded) = (KvConversion::None, KvConversion::Widened, KvConversion::Rounded);
    let expected = [
        [none, rounded, rounded],
        [widened, none, rounded],
        [widened, rounded, none],
    ];
    for (source, row) in expected.iter().enumerate() {
        let from = &sides[source];
        let blocks = &from.blocks(false)[..LENGTH.div_ceil(from.block_size) as usize];
        let ticket = from.sidecar.publish(source as u8 + 1, 1, LENGTH, blocks).await;
        let offer = from.sidecar.source();
        for (sink, conversion) in row.iter().enumerate() {
            let id = (source * 3 + sink) as u8 + 10;
            let request = fetch_request(offer.clone(), ticket.clone(), id, LENGTH, &sides[sink].blocks(true));
            let reports = sides[sink].sidecar.fetch(request).await.expect("it begins");
            let report = outcome(reports).await.expect("it ends well");
            assert_eq!(report.conversion(), *conversion);
            let narrower = [source, sink].map(|side| sides[side].sidecar.about.kv_bytes_per_token);
            let bytes = narrower[0].min(narrower[1]);
            assert_eq!(
                report.data_bytes,
                u64::from(LENGTH) * u64::from(bytes),
                "the smaller type travels"
            );
            assert_eq!(
                sides[sink].go_on(u64::from(id), firsts[source]).await.len(),
                OUTPUT as usize
            );
        }
    }
}

#[tokio::test]
async fn another_models_kv_is_refused_before_anything_is_sent() {
    let (four, other) = (model_of_four_heads(), model());
    let (source, sink) = (Sidecar::start(four.path()).await, Sidecar::start(other.path()).await);
    let ticket = source.publish(1, 1, 16, &[0]).await;
    let refused = sink
        .fetch(fetch_request(source.source(), ticket, 2, 16, &[0]))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::LayoutMismatch);
    assert!(refused.message().contains("kv_head_count is 2 and 4"), "{refused}");
}

#[tokio::test]
async fn heads_that_do_not_divide_are_refused_at_start_in_one_line() {
    let model = model_of_four_heads();
    let socket = model.path().join("kernel.sock");
    let mut command = serve_command(model.path(), &socket, &["--shards", "3"]);
    let mut process = command.stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    let mut stdin = process.stdin.take().expect("stdin");
    let key = format!("{}\n", "00".repeat(32));
    tokio::io::AsyncWriteExt::write_all(&mut stdin, key.as_bytes())
        .await
        .expect("it reads its key");
    let output = soon(process.wait_with_output()).await.expect("it ends");
    let message = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success());
    assert!(
        message.contains("4 KV heads cannot be divided among 3 shards; use a divisor of 4"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");
}
