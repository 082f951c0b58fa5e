//! Two pulls on one slow link: the one that is needed sooner overtakes.

use std::sync::Arc;
use std::time::Duration;

use kvasir_engine::KvDtype;
use kvasir_kernels::KvShape;
use kvasir_sidecar::connections::Connections;
use kvasir_sidecar::fetch;
use kvasir_sidecar::proto::kernel::{FetchRequest, FetchResponse};
use kvasir_sidecar::state::Sidecar;
use opentelemetry::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;

use super::pools::{SCOPE, publish, serve, sidecar_of};

/// 16 KiB a token.
const SHAPE: KvShape = KvShape {
    layer_count: 4,
    kv_head_count: 4,
    head_size: 128,
    block_size: 16,
    dtype: KvDtype::F32,
};
/// 32 MiB: much more than lies in the buffers of a connection.
const TOKENS: u32 = 2048;
const BLOCKS: u32 = TOKENS / 16;
/// So few that a slow machine has most of the patient pull ahead of it when this one begins.
const URGENT_TOKENS: u32 = TOKENS / 4;
/// Of the link: about 60 MiB/s.
const PIECE_BYTES: usize = 64 << 10;
const PIECE_PAUSE: Duration = Duration::from_millis(1);

/// Forwards one connection, and what the source says slowly. Answers with where to connect instead.
async fn slow_link(source: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        let (near, _) = listener.accept().await.expect("a connection");
        let far = TcpStream::connect(source).await.expect("the source listens");
        let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (near.into_split(), far.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut from_near, &mut to_far).await });
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(count @ 1..) = from_far.read(&mut piece).await {
            if to_near.write_all(&piece[..count]).await.is_err() {
                return;
            }
            tokio::time::sleep(PIECE_PAUSE).await;
        }
    });
    address
}

/// Runs a fetch in its own task; its reports come out.
fn begin(
    sink: &Arc<Sidecar>,
    connections: &Arc<Connections>,
    request: FetchRequest,
) -> mpsc::Receiver<Result<FetchResponse, Status>> {
    let fetch = fetch::prepare(sink, request, Context::new()).expect("a good request");
    let (sender, reports) = mpsc::channel(1024);
    let (sink, connections) = (Arc::clone(sink), Arc::clone(connections));
    tokio::spawn(async move { fetch::run(&sink, &connections, fetch, sender).await });
    reports
}

#[tokio::test]
async fn the_pull_that_is_needed_sooner_overtakes_and_the_other_goes_on() {
    let bytes = (SHAPE.bytes_per_token() * TOKENS as usize) as u64;
    let (source, sink) = (sidecar_of(SHAPE, 1, bytes), sidecar_of(SHAPE, 1, 2 * bytes));
    let ticket = publish(&source, &(0..BLOCKS).collect::<Vec<_>>(), TOKENS);
    source.exports.advance(1, TOKENS);
    let mut servers = JoinSet::new();
    let mut offer = serve(&source, &mut servers).await;
    offer.shard_addresses = vec![slow_link(offer.shard_addresses.remove(0)).await];
    let request = |lease: u8, first_block: u32, token_end: u32, deadline_ms: u32| FetchRequest {
        lease_id: vec![lease; 16],
        ticket: Some(ticket.clone()),
        source: Some(offer.clone()),
        block_ids: (first_block..first_block + token_end / 16).collect(),
        token_begin: 0,
        token_end,
        tenant_scope: SCOPE.to_vec(),
        deadline_ms,
        ..FetchRequest::default()
    };
    let connections = Arc::new(Connections::default());
    let mut patient = begin(&sink, &connections, request(1, 0, TOKENS, 60_000));
    let started = patient.recv().await.expect("a report").expect("progress");
    assert!(!started.complete);
    let mut urgent = begin(&sink, &connections, request(2, BLOCKS, URGENT_TOKENS, 500));

    let (mut at_urgent_begin, mut patient_end) = (None, started.verified_token_end);
    let urgent_done = loop {
        tokio::select! {
            biased;
            Some(report) = patient.recv() => {
                let report = report.expect("progress");
                assert!(!report.complete, "the patient pull, which began first, also ended first");
                patient_end = report.verified_token_end;
            }
            Some(report) = urgent.recv() => {
                let report = report.expect("progress");
                at_urgent_begin.get_or_insert(patient_end);
                if report.complete {
                    break report;
                }
            }
        }
    };
    assert_eq!(urgent_done.data_bytes, bytes / u64::from(TOKENS / URGENT_TOKENS));
    assert!(
        patient_end > at_urgent_begin.expect("it began"),
        "the patient pull starved"
    );
    let mut last = None;
    while let Some(report) = patient.recv().await {
        last = Some(report.expect("progress"));
    }
    assert!(last.expect("a report").complete);
}
