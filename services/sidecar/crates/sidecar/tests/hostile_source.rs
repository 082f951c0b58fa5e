//! A source that sends what it should not. The receiver refuses with a type, counts nothing, and leaves its pool as it was.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kvasir_engine::{KvDtype, KvLayout, KvPool};
use kvasir_kernels::KvShape;
use kvasir_sidecar::exports::Exports;
use kvasir_sidecar::fetch::{self, Connections};
use kvasir_sidecar::fetches::Fetches;
use kvasir_sidecar::http2;
use kvasir_sidecar::proto::common::{ErrorDetail, ErrorReason};
use kvasir_sidecar::proto::kernel::{FetchRequest, FetchResponse};
use kvasir_sidecar::proto::transfer::kv_transfer_service_server::{KvTransferService, KvTransferServiceServer};
use kvasir_sidecar::proto::transfer::{
    CodecLevel, Frame, PullEnd, PullHeader, PullRequest, PullResponse, Ticket, pull_response::Kind,
};
use kvasir_sidecar::state::Sidecar;
use kvasir_sidecar::stats::Stats;
use kvasir_sidecar::telemetry::Telemetry;
use kvasir_sidecar::ticket::TicketKey;
use opentelemetry::Context;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use xxhash_rust::xxh3::xxh3_128;

const SHAPE: KvShape = KvShape {
    layer_count: 3,
    kv_head_count: 2,
    head_size: 8,
    block_size: 16,
    dtype: KvDtype::F16,
};
const SCOPE: [u8; 16] = [9; 16];
const FINGERPRINT: [u8; 16] = [3; 16];
/// Two blocks, the second one partial.
const TOKENS: u32 = 20;
const BLOCKS: [u32; 2] = [2, 1];
const PATIENCE: Duration = Duration::from_secs(60);

/// What a source does once it has sent its messages.
#[derive(Clone, Copy)]
enum Then {
    Ends,
    HangsOpen,
    /// Does not even answer the call.
    NeverAnswers,
}

struct Script(Vec<PullResponse>, Then);

#[tonic::async_trait]
impl KvTransferService for Script {
    type PullStream = Pin<Box<dyn Stream<Item = Result<PullResponse, Status>> + Send>>;

    async fn pull(&self, _request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let messages = tokio_stream::iter(self.0.clone().into_iter().map(Ok));
        match self.1 {
            Then::Ends => Ok(Response::new(Box::pin(messages))),
            Then::HangsOpen => Ok(Response::new(Box::pin(messages.chain(tokio_stream::pending())))),
            Then::NeverAnswers => std::future::pending().await,
        }
    }
}

fn message(kind: Kind) -> PullResponse {
    PullResponse { kind: Some(kind) }
}

fn header() -> PullHeader {
    let layout = kvasir_sidecar::proto::common::KvLayout {
        fingerprint: FINGERPRINT.to_vec(),
        ..Default::default()
    };
    PullHeader {
        layout: Some(layout),
        source_epoch: 1,
    }
}

/// A good frame of all layers.
fn frame(token_begin: u32, token_count: u32) -> Frame {
    let data: Vec<u8> = (0..token_count as usize * SHAPE.bytes_per_token())
        .map(|i| (i % 250 + 1) as u8)
        .collect();
    sealed(Frame {
        token_begin,
        token_count,
        layer_begin: 0,
        layer_count: 3,
        level: CodecLevel::Raw.into(),
        layout_fingerprint: FINGERPRINT.to_vec(),
        tenant_scope: SCOPE.to_vec(),
        data: Bytes::from(data),
        ..Frame::default()
    })
}

/// With the digest of whatever it holds.
fn sealed(frame: Frame) -> Frame {
    Frame {
        digest: xxh3_128(&frame.data).to_be_bytes().to_vec(),
        ..frame
    }
}

fn sidecar() -> Arc<Sidecar> {
    let layout = KvLayout {
        model_revision: "test".into(),
        dtype: SHAPE.dtype,
        block_size: SHAPE.block_size,
        layer_count: SHAPE.layer_count,
        kv_head_count: SHAPE.kv_head_count,
        head_size: SHAPE.head_size,
        rope: "none".into(),
        fingerprint: FINGERPRINT,
    };
    Arc::new(Sidecar {
        worker_id: "sink".into(),
        epoch: 1,
        ticket_key: TicketKey::new([4; 32]),
        pool: Arc::new(KvPool::new(SHAPE, 1 << 14).expect("a pool")),
        layout,
        exports: Arc::new(Exports::default()),
        fetches: Fetches::default(),
        stats: Arc::new(Stats::default()),
        telemetry: Telemetry::start("sink"),
    })
}

fn request(source: String) -> FetchRequest {
    FetchRequest {
        lease_id: vec![1; 16],
        ticket: Some(Ticket::default()),
        source_address: source,
        block_ids: BLOCKS.to_vec(),
        token_begin: 0,
        token_end: TOKENS,
        tenant_scope: SCOPE.to_vec(),
        level: CodecLevel::Raw.into(),
        stall_timeout_ms: 200,
    }
}

/// What the worker would be told, the last thing of it.
async fn fetched(sidecar: &Sidecar, messages: Vec<PullResponse>, then: Then) -> Result<FetchResponse, Status> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let service = KvTransferServiceServer::new(Script(messages, then));
    let server = tokio::spawn(
        http2::server()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    let outcome = tokio::time::timeout(PATIENCE, fetch_from(sidecar, request(address)))
        .await
        .expect("it hangs");
    server.abort();
    outcome
}

async fn fetch_from(sidecar: &Sidecar, request: FetchRequest) -> Result<FetchResponse, Status> {
    let fetch = fetch::prepare(sidecar, request, Context::new())?;
    let (sender, mut reports) = mpsc::channel(16);
    let connections = Connections::default();
    let reading = async {
        let mut last = Err(Status::internal("no report"));
        while let Some(report) = reports.recv().await {
            last = report;
        }
        last
    };
    tokio::join!(fetch::run(sidecar, &connections, fetch, sender), reading).1
}

fn reason(status: &Status) -> ErrorReason {
    let detail = status
        .metadata()
        .get_bin("kvasir-error-bin")
        .expect("an error has a detail");
    ErrorDetail::decode(detail.to_bytes().expect("base64"))
        .expect("an ErrorDetail")
        .reason()
}

fn block(sidecar: &Sidecar, block: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    sidecar.pool.gather(block, 0..16, 0..3, &mut bytes).expect("a block");
    bytes
}

#[tokio::test]
async fn honest_messages_are_placed() {
    let sidecar = sidecar();
    let (first, second) = (frame(0, 16), frame(16, 4));
    let end = PullEnd {
        data_bytes: (first.data.len() + second.data.len()) as u64,
        frame_count: 2,
    };
    let messages = [
        Kind::Header(header()),
        Kind::Frame(first.clone()),
        Kind::Frame(second.clone()),
        Kind::End(end),
    ];
    let report = fetched(&sidecar, messages.map(message).to_vec(), Then::Ends)
        .await
        .expect("a whole prompt");
    assert!(report.complete && report.verified_token_end == TOKENS && report.data_bytes == end.data_bytes);
    assert_eq!(block(&sidecar, BLOCKS[0]), first.data);
    let mut partial = Vec::new();
    sidecar
        .pool
        .gather(BLOCKS[1], 0..4, 0..3, &mut partial)
        .expect("a block");
    assert_eq!(partial, second.data);
    assert_eq!(block(&sidecar, 0), vec![0; block(&sidecar, 0).len()]);
    assert_eq!(sidecar.stats.kv_bytes_received.load(Ordering::Relaxed), end.data_bytes);
}

#[tokio::test]
async fn a_first_frame_that_is_wrong_changes_nothing() {
    use ErrorReason::{DigestMismatch, LayoutMismatch};
    let good = || frame(0, 16);
    let mut altered = good().data.to_vec();
    altered[77] ^= 4;
    let altered = Bytes::from(altered);
    let cases: Vec<(&str, Frame, ErrorReason)> = vec![
        (
            "one bit of the data",
            Frame {
                data: altered,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "no digest",
            Frame {
                digest: vec![],
                ..good()
            },
            DigestMismatch,
        ),
        (
            "little endian",
            Frame {
                digest: good().digest.into_iter().rev().collect(),
                ..good()
            },
            DigestMismatch,
        ),
        (
            "another layout",
            Frame {
                layout_fingerprint: vec![4; 16],
                ..good()
            },
            LayoutMismatch,
        ),
        (
            "no layout",
            Frame {
                layout_fingerprint: vec![],
                ..good()
            },
            LayoutMismatch,
        ),
        (
            "another tenant",
            Frame {
                tenant_scope: vec![8; 16],
                ..good()
            },
            DigestMismatch,
        ),
        (
            "no tenant",
            Frame {
                tenant_scope: vec![],
                ..good()
            },
            DigestMismatch,
        ),
        ("the second block first", frame(16, 4), DigestMismatch),
        ("a part of a block", frame(0, 15), DigestMismatch),
        ("more than a block", frame(0, 20), DigestMismatch),
        (
            "no tokens",
            sealed(Frame {
                token_count: 0,
                data: Bytes::new(),
                ..good()
            }),
            DigestMismatch,
        ),
        (
            "endless tokens",
            Frame {
                token_count: u32::MAX,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "the last position there is",
            Frame {
                token_begin: u32::MAX - 15,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "the second layer first",
            Frame {
                layer_begin: 1,
                layer_count: 2,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "no layers",
            Frame {
                layer_count: 0,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "a layer too many",
            Frame {
                layer_count: 4,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "endless layers",
            Frame {
                layer_count: u32::MAX,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "data too short",
            sealed(Frame {
                data: good().data.slice(1..),
                ..good()
            }),
            DigestMismatch,
        ),
        (
            "no data",
            sealed(Frame {
                data: Bytes::new(),
                ..good()
            }),
            DigestMismatch,
        ),
        ("an unknown level", Frame { level: 9, ..good() }, DigestMismatch),
        ("no level", Frame { level: 0, ..good() }, DigestMismatch),
    ];
    for (name, bad, expected) in cases {
        let sidecar = sidecar();
        let messages = vec![message(Kind::Header(header())), message(Kind::Frame(bad))];
        let error = fetched(&sidecar, messages, Then::HangsOpen).await.expect_err(name);
        assert_eq!(reason(&error), expected, "{name}: {error}");
        assert_eq!(sidecar.stats.frames_refused.load(Ordering::Relaxed), 1, "{name}");
        assert_eq!(sidecar.stats.kv_bytes_received.load(Ordering::Relaxed), 0, "{name}");
        for id in 0..sidecar.pool.block_count() {
            assert!(
                block(&sidecar, id).iter().all(|byte| *byte == 0),
                "{name}: block {id} was written"
            );
        }
    }
}

#[tokio::test]
async fn a_later_frame_that_is_wrong_leaves_only_what_was_verified() {
    let sidecar = sidecar();
    let bad = Frame {
        digest: vec![0; 16],
        ..frame(16, 4)
    };
    let messages = [Kind::Header(header()), Kind::Frame(frame(0, 16)), Kind::Frame(bad)];
    let error = fetched(&sidecar, messages.map(message).to_vec(), Then::HangsOpen)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), ErrorReason::DigestMismatch);
    assert_eq!(block(&sidecar, BLOCKS[0]), frame(0, 16).data);
    assert!(block(&sidecar, BLOCKS[1]).iter().all(|byte| *byte == 0));
    assert_eq!(
        sidecar.stats.kv_bytes_received.load(Ordering::Relaxed),
        frame(0, 16).data.len() as u64
    );
}

#[tokio::test]
async fn a_stream_out_of_order_is_refused() {
    use ErrorReason::{DigestMismatch, Internal, LayoutMismatch, Unavailable};
    let mut other = header();
    other.layout.as_mut().expect("a layout").fingerprint = vec![4; 16];
    let whole = || {
        vec![
            Kind::Header(header()),
            Kind::Frame(frame(0, 16)),
            Kind::Frame(frame(16, 4)),
        ]
    };
    let with = |last: Kind| [whole(), vec![last]].concat();
    let bytes = (frame(0, 16).data.len() + frame(16, 4).data.len()) as u64;
    let cases: Vec<(&str, Vec<Kind>, ErrorReason)> = vec![
        ("nothing", vec![], Unavailable),
        ("no header", vec![Kind::Frame(frame(0, 16))], Internal),
        ("another layout", vec![Kind::Header(other)], LayoutMismatch),
        ("no layout", vec![Kind::Header(PullHeader::default())], LayoutMismatch),
        (
            "two headers",
            vec![Kind::Header(header()), Kind::Header(header())],
            Internal,
        ),
        (
            "an end at once",
            vec![Kind::Header(header()), Kind::End(PullEnd::default())],
            DigestMismatch,
        ),
        (
            "a block short",
            [
                &whole()[..2],
                &[Kind::End(PullEnd {
                    data_bytes: bytes,
                    frame_count: 2,
                })],
            ]
            .concat(),
            DigestMismatch,
        ),
        (
            "other bytes",
            with(Kind::End(PullEnd {
                data_bytes: bytes + 1,
                frame_count: 2,
            })),
            DigestMismatch,
        ),
        (
            "other frames",
            with(Kind::End(PullEnd {
                data_bytes: bytes,
                frame_count: 3,
            })),
            DigestMismatch,
        ),
        ("a frame too many", with(Kind::Frame(frame(20, 12))), DigestMismatch),
        (
            "a frame twice",
            [&whole()[..2], &[Kind::Frame(frame(0, 16))]].concat(),
            DigestMismatch,
        ),
        ("no end", whole(), Unavailable),
    ];
    for (name, kinds, expected) in cases {
        let messages = kinds.into_iter().map(message).collect();
        let error = fetched(&sidecar(), messages, Then::Ends).await.expect_err(name);
        assert_eq!(reason(&error), expected, "{name}: {error}");
    }
    let empty = vec![message(Kind::Header(header())), PullResponse { kind: None }];
    assert_eq!(
        reason(&fetched(&sidecar(), empty, Then::Ends).await.unwrap_err()),
        Internal
    );
}

#[tokio::test]
async fn silence_is_a_stall() {
    let begun = [Kind::Header(header()), Kind::Frame(frame(0, 16))]
        .map(message)
        .to_vec();
    let error = fetched(&sidecar(), begun, Then::HangsOpen).await.unwrap_err();
    assert_eq!(reason(&error), ErrorReason::Unavailable, "{error}");
    let error = fetched(&sidecar(), vec![], Then::HangsOpen).await.unwrap_err();
    assert_eq!(reason(&error), ErrorReason::Unavailable, "{error}");
    let error = fetched(&sidecar(), vec![], Then::NeverAnswers).await.unwrap_err();
    assert_eq!(reason(&error), ErrorReason::Unavailable, "{error}");
}

#[tokio::test]
async fn a_source_that_is_not_there_or_not_one_is_unavailable() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port")
        .local_addr()
        .expect("an address")
        .to_string();
    let error = fetch_from(&sidecar(), request(free)).await.unwrap_err();
    assert_eq!(reason(&error), ErrorReason::Unavailable, "{error}");

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let web = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = tokio::time::timeout(PATIENCE, fetch_from(&sidecar(), request(address)))
        .await
        .expect("it hangs")
        .unwrap_err();
    assert_eq!(reason(&error), ErrorReason::Unavailable, "{error}");
    web.abort();
}

#[tokio::test]
async fn a_request_that_does_not_fit_the_pool_is_refused_before_anything_is_sent() {
    let sidecar = sidecar();
    let good = || request("127.0.0.1:1".into());
    let cases = [
        (
            "a short lease id",
            FetchRequest {
                lease_id: vec![1; 15],
                ..good()
            },
            "lease_id",
        ),
        (
            "no scope",
            FetchRequest {
                tenant_scope: vec![],
                ..good()
            },
            "tenant_scope",
        ),
        ("an empty range", FetchRequest { token_end: 0, ..good() }, "token_begin"),
        (
            "a range within a block",
            FetchRequest {
                token_begin: 5,
                ..good()
            },
            "token_begin",
        ),
        (
            "a block too few",
            FetchRequest {
                token_end: 33,
                ..good()
            },
            "block_ids",
        ),
        (
            "an endless range",
            FetchRequest {
                token_end: u32::MAX,
                ..good()
            },
            "block_ids",
        ),
        (
            "a block that is not there",
            FetchRequest {
                block_ids: vec![2, 9_999],
                ..good()
            },
            "block_ids",
        ),
        ("no ticket", FetchRequest { ticket: None, ..good() }, "ticket"),
        ("no level", FetchRequest { level: 0, ..good() }, "level"),
        (
            "an address that is none",
            FetchRequest {
                source_address: "a b".into(),
                ..good()
            },
            "source_address",
        ),
        (
            "no address",
            FetchRequest {
                source_address: String::new(),
                ..good()
            },
            "source_address",
        ),
    ];
    for (name, bad, field) in cases {
        let error = fetch_from(&sidecar, bad).await.expect_err(name);
        let detail = error
            .metadata()
            .get_bin("kvasir-error-bin")
            .expect("a detail")
            .to_bytes()
            .expect("base64");
        let detail = ErrorDetail::decode(detail).expect("an ErrorDetail");
        assert_eq!(
            (detail.reason(), detail.field.as_str()),
            (ErrorReason::InvalidRequest, field),
            "{name}: {error}"
        );
    }
}
