//! Blocks from a worker's sidecar into a store's, through a kill -9, and into another worker's: the same tokens as where they were computed.

use std::path::Path;
use std::process::Stdio;

use crate::common::*;
use crate::profiles::*;
use kvasir_sidecar::proto::common::{ErrorReason, KvLayout, KvSource};
use kvasir_sidecar::proto::kernel::store_sidecar_service_client::StoreSidecarServiceClient;
use kvasir_sidecar::proto::kernel::{
    DescribeStoreRequest, DescribeStoreResponse, ExposeBlocksRequest, ExposeBlocksResponse, FetchRequest,
    IngestBlocksRequest, ListBlocksRequest, PersistBlocksRequest, ReadStoreStatsRequest, RemoveBlocksRequest,
    SequenceSlice, WithdrawBlocksRequest,
};
use kvasir_sidecar::proto::transfer::{Ticket, TicketClaims};
use kvasir_sidecar::ticket::TicketKey;
use prost::Message;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

const BLOCK: u32 = 16;
const WHOLE: u32 = 6;
const LENGTH: u32 = WHOLE * BLOCK + 4;
const SOURCE_BLOCKS: [u32; 8] = [3, 1, 7, 5, 0, 2, 6, 4];
const SINK_BLOCKS: [u32; 8] = [10, 17, 11, 16, 12, 15, 13, 14];
const EPOCH: u64 = 9;

struct StoreProcess {
    process: Child,
    client: StoreSidecarServiceClient<Channel>,
    about: DescribeStoreResponse,
    _sockets: TempDir,
}

/// The key of block `index`.
fn key(index: u32) -> [u8; 16] {
    let mut key = [5; 16];
    key[..4].copy_from_slice(&index.to_be_bytes());
    key
}

fn keys(indices: impl IntoIterator<Item = u32>) -> Vec<u8> {
    indices.into_iter().flat_map(key).collect()
}

impl StoreProcess {
    async fn start(like: &Sidecar, directory: &Path, memory: &str) -> Self {
        Self::start_with(like, directory, memory, &[]).await
    }

    async fn start_with(like: &Sidecar, directory: &Path, memory: &str, extra: &[&str]) -> Self {
        let layout = like.about.layout.as_ref().expect("a layout").encode_to_vec();
        let layout: String = layout.iter().map(|byte| format!("{byte:02x}")).collect();
        let sockets = tempfile::tempdir().expect("a temporary directory");
        let socket = sockets.path().join("store.sock");
        let mut process = Command::new(env!("CARGO_BIN_EXE_kvasir-sidecar"))
            .args([
                "store",
                "--store-id",
                "s",
                "--staging-blocks",
                "16",
                "--segment-bytes",
                "1MiB",
            ])
            .args(["--layout", &layout, "--memory-bytes", memory, "--disk-bytes", "64MiB"])
            .args(["--epoch", &EPOCH.to_string()])
            .arg("--socket")
            .arg(&socket)
            .arg("--directory")
            .arg(directory)
            .args(extra)
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let stdin = process.stdin.as_mut().expect("stdin is piped");
        stdin
            .write_all(format!("{KEY_HEX}\n").as_bytes())
            .await
            .expect("it reads its key");
        let mut lines = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let line = soon(lines.next_line()).await.expect("text").expect("it is ready");
        assert!(line.contains("ready"), "{line}");
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a path");
        let mut client = StoreSidecarServiceClient::new(channel.connect().await.expect("it listens"));
        let about = client
            .describe_store(DescribeStoreRequest {})
            .await
            .expect("it tells")
            .into_inner();
        Self {
            process,
            client,
            about,
            _sockets: sockets,
        }
    }

    async fn ingest(&mut self, source: &Sidecar, ticket: Ticket, first: u32, count: u32) -> Result<u32, Status> {
        let request = IngestBlocksRequest {
            lease_id: vec![first as u8 + 40; 16],
            ticket: Some(ticket),
            source: Some(source.source()),
            first_block: first,
            keys: keys(first..first + count),
            tenant_scope: SCOPE.to_vec(),
            expires_at_unix_ms: 0,
        };
        soon(self.client.ingest_blocks(request))
            .await
            .map(|answer| answer.into_inner().stored_count)
    }

    async fn expose(&mut self, lease: u8, first: u32, keys: Vec<u8>, scope: [u8; 16]) -> ExposeBlocksResponse {
        let request = ExposeBlocksRequest {
            lease_id: vec![lease; 16],
            first_block: first,
            keys,
            tenant_scope: scope.to_vec(),
            expires_at_unix_ms: unix_ms() + 3_600_000,
        };
        soon(self.client.expose_blocks(request))
            .await
            .expect("exposed")
            .into_inner()
    }

    /// Where a worker pulls: whole blocks at one address.
    fn source(&self, like: &Sidecar) -> KvSource {
        let layout = like.about.layout.clone().expect("a layout");
        KvSource {
            layout: Some(KvLayout {
                shard_count: 1,
                ..layout
            }),
            shard_addresses: vec![self.about.transfer_address.clone()],
            ..KvSource::default()
        }
    }

    /// As the store signs.
    fn ticket(&self, like: &Sidecar, lease: u8, blocks: std::ops::Range<u32>) -> Ticket {
        TicketKey::from_hex(KEY_HEX).expect("a key").sign(&TicketClaims {
            lease_id: vec![lease; 16],
            source_worker_id: "s".into(),
            source_epoch: EPOCH,
            token_begin: blocks.start * BLOCK,
            token_end: blocks.end * BLOCK,
            expires_at_unix_ms: unix_ms() + 3_600_000,
            layout_fingerprint: like.fingerprint(),
            tenant_scope: SCOPE.to_vec(),
        })
    }

    async fn listed(&mut self) -> Vec<Vec<u8>> {
        let mut answers = soon(self.client.list_blocks(ListBlocksRequest {}))
            .await
            .expect("a list")
            .into_inner();
        let mut found = Vec::new();
        while let Some(answer) = soon(answers.message()).await.expect("a list") {
            found.extend(answer.blocks.into_iter().map(|block| block.key));
        }
        found.sort();
        found
    }
}

/// The whole prompt as sequence 1; answers with its first token.
async fn compute(execution: &mut Execution) -> u32 {
    let whole = SequenceSlice {
        sample: true,
        ..slice(1, 0, prompt(1, LENGTH))
    };
    let answer = execution
        .step(vec![start(1, LENGTH, &SOURCE_BLOCKS)], vec![whole], vec![])
        .await;
    sampled(&answer.expect("a prompt"))
}

#[tokio::test]
async fn blocks_outlive_the_worker_that_computed_them_and_a_killed_store() {
    let model = model();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source = Sidecar::start(model.path()).await;
    let mut execution = source.execute().await;
    let first = compute(&mut execution).await;
    let expected = execution.decode(1, LENGTH, None, 20).await;

    let mut store = StoreProcess::start(&source, directory.path(), "8MiB").await;
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    assert_eq!(
        store.ingest(&source, ticket.clone(), 0, 4).await.expect("four blocks"),
        4
    );
    assert_eq!(store.ingest(&source, ticket, 4, 2).await.expect("two more"), 2);
    let persist = PersistBlocksRequest { keys: keys(0..WHOLE) };
    let durable = soon(store.client.persist_blocks(persist))
        .await
        .expect("written")
        .into_inner()
        .durable;
    assert_eq!(durable, [true; WHOLE as usize]);
    drop(source);
    store.process.kill().await.expect("killed");

    let sink = Sidecar::start(model.path()).await;
    let mut store = StoreProcess::start(&sink, directory.path(), "8MiB").await;
    let expected_keys: Vec<Vec<u8>> = (0..WHOLE).map(|index| key(index).to_vec()).collect();
    assert_eq!(store.listed().await, expected_keys);
    // The worker has one block itself and wants the others; the last key is nobody's.
    let exposed = store.expose(7, 1, keys((1..WHOLE).chain([77])), SCOPE).await;
    assert_eq!((exposed.exposed_count, exposed.from_disk), (5, vec![true; 5]));
    let again = store.expose(8, 0, keys(0..WHOLE), SCOPE).await;
    assert_eq!(again.exposed_count, 6);
    assert_eq!(again.from_disk, [true, false, false, false, false, false]);
    let ticket = store.ticket(&sink, 8, 0..WHOLE);
    let request = fetch_request(store.source(&sink), ticket, 2, WHOLE * BLOCK, &SINK_BLOCKS);
    let last = outcome(sink.fetch(request).await.expect("it begins"))
        .await
        .expect("it ends");
    assert!(last.complete);
    for lease in [7, 8] {
        let lease_id = vec![lease; 16];
        soon(store.client.withdraw_blocks(WithdrawBlocksRequest { lease_id }))
            .await
            .expect("withdrawn");
    }

    let mut decode = sink.execute().await;
    let rest = SequenceSlice {
        sample: true,
        ..slice(1, WHOLE * BLOCK, prompt(1, LENGTH)[(WHOLE * BLOCK) as usize..].to_vec())
    };
    let answer = decode
        .step(vec![start(1, LENGTH, &SINK_BLOCKS)], vec![rest], vec![])
        .await;
    assert_eq!(sampled(&answer.expect("the rest")), first);
    assert_eq!(decode.decode(1, LENGTH, None, 20).await, expected);
    let stats = soon(store.client.read_store_stats(ReadStoreStatsRequest {}))
        .await
        .expect("stats")
        .into_inner();
    assert_eq!(
        (stats.exports_open, stats.damaged, stats.memory_blocks),
        (0, 0, u64::from(WHOLE))
    );
}

#[tokio::test]
async fn what_is_another_tenant_s_removed_or_out_of_reach_is_not_there() {
    let model = model();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source = Sidecar::start(model.path()).await;
    let mut execution = source.execute().await;
    compute(&mut execution).await;
    let mut store = StoreProcess::start(&source, directory.path(), "8MiB").await;
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    assert_eq!(
        store.ingest(&source, ticket.clone(), 0, 3).await.expect("three blocks"),
        3
    );
    assert_eq!(
        store.expose(1, 0, keys(0..3), [8; 16]).await.exposed_count,
        0,
        "another tenant's"
    );
    let gone = RemoveBlocksRequest {
        keys: keys([1]),
        memory_only: false,
    };
    soon(store.client.remove_blocks(gone)).await.expect("removed");
    assert_eq!(store.expose(2, 0, keys(0..3), SCOPE).await.exposed_count, 1);
    // The source takes its lease back: nothing comes, and the store is as it was.
    source.release(1).await;
    let refused = store
        .ingest(&source, ticket, 3, 2)
        .await
        .expect_err("the lease is over");
    assert_eq!(reason(&refused), ErrorReason::LeaseExpired);
    assert_eq!(store.expose(3, 0, keys([2]), SCOPE).await.exposed_count, 1);
}

#[tokio::test]
async fn a_store_without_room_keeps_what_it_has() {
    let model = model();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source = Sidecar::start(model.path()).await;
    let mut execution = source.execute().await;
    compute(&mut execution).await;
    let mut store = StoreProcess::start(&source, directory.path(), "192KiB").await;
    let fits = (store.about.memory_bytes / store.about.block_bytes) as u32;
    assert!((1..WHOLE).contains(&fits), "{fits}");
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    assert_eq!(
        store.ingest(&source, ticket.clone(), 0, WHOLE).await.expect("some"),
        fits
    );
    let refused = store.ingest(&source, ticket, fits, 1).await.expect_err("it is full");
    assert_eq!(reason(&refused), ErrorReason::Overloaded);
    assert_eq!(store.expose(3, 0, keys(0..WHOLE), SCOPE).await.exposed_count, fits);
}

#[tokio::test]
async fn a_store_lends_at_every_level_of_the_model_s_profile_and_keeps_exact_blocks() {
    let model = model();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = codec_profile(model.path()).await;
    let profile = ["--codec-profile", path.to_str().expect("UTF-8")];
    let source = Sidecar::start_with(model.path(), &profile).await;
    let mut execution = source.execute().await;
    let first = compute(&mut execution).await;
    let expected = execution.decode(1, LENGTH, None, 12).await;
    let mut store = StoreProcess::start_with(&source, directory.path(), "8MiB", &profile).await;
    let own: Vec<Vec<u8>> = source.about.codec_profiles.iter().map(|own| own.id.clone()).collect();
    assert_eq!(store.about.codec_profile_ids, own);
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    assert_eq!(store.ingest(&source, ticket, 0, WHOLE).await.expect("all"), WHOLE);
    let end = WHOLE * BLOCK;
    let raw = u64::from(end) * u64::from(source.about.kv_bytes_per_token);
    // Raw last: what was lent lossily is exact in the store.
    for (lease, level, least_ratio) in [(2, 1, 1.02), (3, 2, 3.0), (4, 3, 3.0), (5, 0, 1.0)] {
        assert_eq!(store.expose(lease, 0, keys(0..WHOLE), SCOPE).await.exposed_count, WHOLE);
        let ticket = store.ticket(&source, lease, 0..WHOLE);
        let request = FetchRequest {
            levels: token_levels(&[(end, level)]),
            codec_profile_id: own[1].clone(),
            ..fetch_request(store.source(&source), ticket, lease + 10, end, &SINK_BLOCKS)
        };
        let last = outcome(source.fetch(request).await.expect("it begins"))
            .await
            .expect("all of it");
        assert!(last.complete && raw_bytes(&last) == raw, "{last:?}");
        assert!(last.data_bytes as f64 * least_ratio <= raw as f64, "{last:?}");
        assert_eq!(last.levels.iter().map(|own| own.level).collect::<Vec<_>>(), [level]);
        let lease_id = vec![lease; 16];
        let withdrawn = store.client.withdraw_blocks(WithdrawBlocksRequest { lease_id });
        soon(withdrawn).await.expect("withdrawn");
        if level > 1 {
            continue;
        }
        let sequence = u64::from(lease);
        let rest = SequenceSlice {
            sample: true,
            ..slice(sequence, end, prompt(1, LENGTH)[end as usize..].to_vec())
        };
        let begin = start(sequence, LENGTH, &SINK_BLOCKS);
        let answer = execution.step(vec![begin], vec![rest], vec![]).await;
        assert_eq!(sampled(&answer.expect("the rest")), first);
        assert_eq!(
            execution.decode(sequence, LENGTH, None, 12).await,
            expected,
            "level {level}"
        );
    }
    // One block of the text alone, from its middle: keys are turned back by their positions.
    assert_eq!(store.expose(6, 3, keys([3]), SCOPE).await.exposed_count, 1);
    let ticket = store.ticket(&source, 6, 3..4);
    let request = FetchRequest {
        token_begin: 3 * BLOCK,
        levels: token_levels(&[(4 * BLOCK, 3)]),
        codec_profile_id: own[1].clone(),
        ..fetch_request(store.source(&source), ticket, 16, 4 * BLOCK, &SINK_BLOCKS)
    };
    let last = outcome(source.fetch(request).await.expect("it begins")).await;
    assert!(last.expect("a block").complete);
}

#[tokio::test]
async fn a_store_refuses_to_start_with_a_profile_of_other_kv() {
    let model = model();
    let path = codec_profile(model.path()).await;
    let other = Sidecar::start_with(model.path(), &["--kv-dtype", "bf16"]).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let layout = other.about.layout.as_ref().expect("a layout").encode_to_vec();
    let layout: String = layout.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvasir-sidecar"))
        .args([
            "store",
            "--store-id",
            "s",
            "--epoch",
            "1",
            "--layout",
            &layout,
            "--socket",
        ])
        .arg(directory.path().join("s"))
        .arg("--codec-profile")
        .arg(&path)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(format!("{KEY_HEX}\n").as_bytes()).await.expect("a key");
    let ended = soon(child.wait_with_output()).await.expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        !ended.status.success() && said.contains("made from KV in F32, this is Bf16"),
        "{said}"
    );
}
