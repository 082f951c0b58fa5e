//! A source that breaks the order of a stream, falls silent, or is not there; and requests that should never reach one.

use crate::hostile::*;
use kvasir_engine::KvLayout;
use kvasir_sidecar::layouts::layout_to_wire;
use kvasir_sidecar::proto::common::{ErrorDetail, ErrorReason, KvSource};
use kvasir_sidecar::proto::kernel::FetchRequest;
use kvasir_sidecar::proto::transfer::{PullEnd, PullHeader, PullResponse, TokenLevel, pull_response::Kind};
use prost::Message;
use tokio::net::TcpListener;

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
            "other heads",
            vec![Kind::Header(PullHeader {
                head_begin: 1,
                ..header()
            })],
            LayoutMismatch,
        ),
        (
            "another element type",
            vec![Kind::Header(PullHeader {
                frame_dtype: 1,
                ..header()
            })],
            LayoutMismatch,
        ),
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
    let from = |change: fn(&mut KvSource)| {
        let mut request = good();
        change(request.source.as_mut().expect("a source"));
        request
    };
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
        (
            "levels for some tokens only",
            FetchRequest {
                levels: vec![TokenLevel {
                    token_end: 16,
                    level: 1,
                }],
                ..good()
            },
            "levels",
        ),
        ("an address that is none", request("a b".into()), "source"),
        ("no address", request(String::new()), "source"),
        ("no source", FetchRequest { source: None, ..good() }, "source"),
        (
            "a source without a layout",
            from(|source| source.layout = None),
            "source",
        ),
        (
            "a layout that cannot be",
            from(|source| source.layout.as_mut().expect("a layout").block_size = 48),
            "source",
        ),
        (
            "two addresses for one shard",
            from(|source| source.shard_addresses.push("127.0.0.1:2".into())),
            "source",
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

#[tokio::test]
async fn kv_of_another_model_is_refused_with_what_differs() {
    let sidecar = sidecar();
    let mut request = request("127.0.0.1:1".into());
    let other = KvLayout {
        model_revision: "other".into(),
        kv_head_count: 4,
        ..layout()
    };
    request.source.as_mut().expect("a source").layout = Some(layout_to_wire(&other.with_fingerprint()));
    let error = fetch_from(&sidecar, request).await.unwrap_err();
    assert_eq!(reason(&error), ErrorReason::LayoutMismatch);
    let expected = "KV cannot move here: model_revision is test and other, kv_head_count is 2 and 4; place the request on workers of one model";
    assert_eq!(error.message(), expected);
}
