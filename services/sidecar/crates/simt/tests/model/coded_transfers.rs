//! Pulls at the codec's levels between pools on simulated devices and in the host's memory: the same bytes on the wire and the same KV in place,
//! whoever codes.

use crate::sides::{Side, TOKENS_MAX, model, request, sent, serving};
use kvasir_codec::{CodecError, KvShapeOfModel, Prepared};
use kvasir_sidecar::chunk_coder::{ChunkCoder, CodingSite};
use kvasir_sidecar::host_coder::HostSite;
use kvasir_sidecar::proto::transfer::kv_transfer_service_server::KvTransferService;
use kvasir_sidecar::proto::transfer::pull_response::Kind;
use kvasir_sidecar::proto::transfer::{Frame, PullRequest, PullResponse};
use kvasir_simt::suite::{Random, kv_profile, kv_sample};
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Five blocks, the last one partial.
const TOKENS: u32 = 70;
/// Lossless, fast, dense, and all of them.
const CASES: [&[(u32, u32)]; 4] = [
    &[(70, 1)],
    &[(70, 2)],
    &[(70, 3)],
    &[(16, 0), (32, 1), (48, 3), (70, 2)],
];

#[tokio::test]
async fn devices_and_the_host_code_the_same_frames_into_the_same_blocks() {
    let mut random = Random::new(5);
    let profile = kv_profile(&model(), &mut random).expect("a profile");
    let text = kv_sample(&model(), &mut random, TOKENS as usize);
    let sides = [
        Side::on_host(&profile, HostSite).await,
        Side::on_device(&profile, false).await,
        Side::on_device(&profile, true).await,
    ];
    let [host, device, full] = &sides;
    sides.iter().for_each(|side| side.publish(&text.packed));
    let about = device.sidecar.coders.describe();
    let coded = about.iter().flat_map(|profile| &profile.levels[1..]);
    for level in coded {
        assert!(
            level.encode_bytes_per_second > 0.0 && level.decode_bytes_per_second > 0.0,
            "{level:?}"
        );
    }
    let spy = device.device.as_ref().expect("a device");
    let mut lease = 1;
    // One side at a time first: a single coder, whose tables lie on the device since its speed was measured.
    for levels in CASES {
        let expected = host.pulled(levels).await;
        let wire = wire_bytes(&expected);
        spy.take();
        assert_eq!(device.pulled(levels).await, expected, "{levels:?} on a device");
        let seen = spy.take();
        let encoders = seen.launches.get("rans_encode");
        assert!(
            encoders.is_some() && seen.launches.get("kv_gather") == encoders,
            "{seen:?}"
        );
        assert!(seen.crossed < wire + SMALL, "{seen:?} for {wire} bytes");
        assert_eq!(full.pulled(levels).await, expected, "{levels:?} on a full device");

        device.clear(TOKENS);
        spy.take();
        lease += 1;
        let asked = request(host.address.clone(), levels, lease, &host.sidecar);
        let report = device.fetch(asked).await.expect("a whole text");
        assert!(
            report.complete && report.data_bytes == wire as u64,
            "{levels:?}: {report:?}"
        );
        let seen = spy.take();
        let decoders = seen.launches.get("rans_decode");
        assert!(
            decoders.is_some() && seen.launches.contains_key("kv_scatter"),
            "{seen:?}"
        );
        assert!(seen.crossed < wire + SMALL, "{seen:?} for {wire} bytes");
    }
    for levels in CASES {
        lease += 1;
        let asked = request(host.address.clone(), levels, lease, &host.sidecar);
        host.fetch(asked).await.expect("a whole text");
        let kv = host.arrived(TOKENS);
        assert_eq!(
            kv == text.packed,
            levels.iter().all(|(_, level)| *level < 2),
            "{levels:?}"
        );
        for (source, sink) in [(device, device), (device, host), (host, device), (full, full)] {
            sink.clear(TOKENS);
            lease += 1;
            let asked = request(source.address.clone(), levels, lease, &host.sidecar);
            assert!(sink.fetch(asked).await.expect("a whole text").complete);
            let (from, to) = (source.device.is_some(), sink.device.is_some());
            assert!(
                sink.arrived(TOKENS) == kv,
                "{levels:?}, from a device: {from}, to one: {to}"
            );
        }
    }
}

/// Beside the bytes of a pull: what describes sections and pieces, and first tokens.
const SMALL: usize = 6 << 10;

fn wire_bytes(messages: &[PullResponse]) -> usize {
    let frames = messages.iter().map(|message| match &message.kind {
        Some(Kind::Frame(frame)) => frame.data.len(),
        _ => 0,
    });
    frames.sum()
}

/// A source that says what it was told to.
struct Script(Vec<PullResponse>);

#[tonic::async_trait]
impl KvTransferService for Script {
    type PullStream = Pin<Box<dyn Stream<Item = Result<PullResponse, Status>> + Send>>;

    async fn pull(&self, _request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let messages = self.0.clone().into_iter().map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }
}

/// A frame whose bytes were changed by somebody who knows what is summed over them.
fn changed(frame: &Frame, change: impl FnOnce(&mut Vec<u8>)) -> Frame {
    let mut data = frame.data.to_vec();
    change(&mut data);
    let payload_bytes = (data.len() - 64) as u32;
    data[52..56].copy_from_slice(&payload_bytes.to_le_bytes());
    let mut sum = Xxh3::new();
    sum.update(&data[..56]);
    sum.update(&data[64..]);
    data[56..64].copy_from_slice(&sum.digest().to_le_bytes());
    Frame {
        digest: xxh3_128(&data).to_be_bytes().to_vec(),
        data: data.into(),
        ..frame.clone()
    }
}

#[tokio::test]
async fn frames_that_were_tampered_with_are_refused_by_a_device_and_change_nothing() {
    let mut random = Random::new(6);
    let profile = kv_profile(&model(), &mut random).expect("a profile");
    let text = kv_sample(&model(), &mut random, TOKENS as usize);
    let (host, device) = (
        Side::on_host(&profile, HostSite).await,
        Side::on_device(&profile, false).await,
    );
    host.publish(&text.packed);
    device.clear(TOKENS);
    let nothing = device.arrived(TOKENS);
    let mut lease = 1;
    for level in [1, 2, 3] {
        let honest = host.pulled(&[(TOKENS, level)]).await;
        let [header, frame, end] = &honest[..] else {
            panic!("a text of one frame makes {} messages", honest.len());
        };
        let Some(Kind::Frame(frame)) = &frame.kind else {
            panic!("no frame: {frame:?}");
        };
        let length = frame.data.len();
        let mut tampered = vec![
            // Not summed again: an accident.
            Frame {
                data: [&frame.data[..length - 1], &[!frame.data[length - 1]]].concat().into(),
                ..frame.clone()
            },
            changed(frame, |data| data.truncate(length - 3)),
            changed(frame, |data| data.truncate(70)),
            changed(frame, |data| data.extend([0; 9])),
            // Other tokens, layers and levels than are due.
            changed(frame, |data| data[40] = 16),
            changed(frame, |data| data[44] += 1),
            changed(frame, |data| data[50] = 200),
            changed(frame, |data| data[6] = 7),
            // Lengths of a section, wherever it begins.
            changed(frame, |data| data[64..80].fill(0xff)),
        ];
        let known = tampered.len();
        if level == 1 {
            // What decodes to other elements than were encoded, or is not looked at.
            let places = (0..12).map(|_| random.range(64, length));
            tampered.extend(places.map(|at| changed(frame, |data| data[at] ^= 4)));
        }
        let mut refused_count = 0;
        for (index, frame) in tampered.into_iter().enumerate() {
            lease += 1;
            let script = Script(vec![header.clone(), sent(frame), end.clone()]);
            let (address, server) = serving(script).await;
            let asked = request(address, &[(TOKENS, level)], lease, &host.sidecar);
            match device.fetch(asked).await {
                Err(refused) => {
                    assert_eq!(
                        refused.code(),
                        tonic::Code::DataLoss,
                        "level {level}, {index}: {refused}"
                    );
                    assert!(device.arrived(TOKENS) == nothing, "level {level}, {index}");
                    refused_count += 1;
                }
                Ok(_) => {
                    assert!(
                        index >= known && device.arrived(TOKENS) == text.packed,
                        "level {level}, {index}"
                    );
                    device.clear(TOKENS);
                }
            }
            server.abort();
        }
        let least = known + if level == 1 { 8 } else { 0 };
        assert!(refused_count >= least, "level {level}: {refused_count}");
        let (address, server) = serving(Script(honest)).await;
        lease += 1;
        let asked = request(address, &[(TOKENS, level)], lease, &host.sidecar);
        assert!(device.fetch(asked).await.expect("an honest source").complete);
        assert!(device.arrived(TOKENS) != nothing, "level {level}");
        device.clear(TOKENS);
        server.abort();
    }
}

/// The host's coders, given as many chunks at once as a device's.
struct Together(HostSite);

impl CodingSite for Together {
    fn coder(&self, shape: &KvShapeOfModel, prepared: &Arc<Prepared>) -> Result<Box<dyn ChunkCoder>, CodecError> {
        self.0.coder(shape, prepared)
    }

    fn chunks_at_once(&self) -> usize {
        3
    }
}

#[tokio::test]
async fn frames_that_are_coded_together_are_those_that_are_coded_one_by_one() {
    let mut random = Random::new(7);
    let profile = kv_profile(&model(), &mut random).expect("a profile");
    let text = kv_sample(&model(), &mut random, TOKENS_MAX as usize);
    let one = Side::on_host(&profile, HostSite).await;
    let many = Side::on_host(&profile, |pool| Together(HostSite(pool))).await;
    for side in [&one, &many] {
        side.publish(&text.packed);
    }
    let cases: [&[(u32, u32)]; 3] = [
        &[(TOKENS_MAX, 1)],
        &[(TOKENS_MAX, 3)],
        &[(800, 1), (832, 0), (TOKENS_MAX, 2)],
    ];
    let mut lease = 1;
    for levels in cases {
        let expected = one.pulled(levels).await;
        assert!(expected.len() >= 5, "{} messages are too few", expected.len());
        assert!(many.pulled(levels).await == expected, "{levels:?}");
        let mut kv = Vec::new();
        for side in [&one, &many] {
            lease += 1;
            let asked = request(side.address.clone(), levels, lease, &side.sidecar);
            assert!(side.fetch(asked).await.expect("a whole text").complete, "{levels:?}");
            kv.push(side.arrived(TOKENS_MAX));
            side.clear(TOKENS_MAX);
        }
        assert!(kv[0] == kv[1], "{levels:?}");
    }
    // One that is wrong among good ones: what is in place is right, and the wrong one is not there.
    let mut messages = one.pulled(cases[0]).await;
    let Some(Kind::Frame(second)) = &mut messages[2].kind else {
        panic!("no frame: {:?}", messages[2].kind);
    };
    *second = changed(second, |data| data[64..80].fill(0xff));
    let (address, server) = serving(Script(messages)).await;
    let asked = request(address, cases[0], lease + 1, &one.sidecar);
    let refused = many.fetch(asked).await.expect_err("it was tampered with");
    assert_eq!(refused.code(), tonic::Code::DataLoss, "{refused}");
    let (found, right) = (many.arrived(TOKENS_MAX), &text.packed);
    assert!(found.iter().zip(right).all(|(a, b)| *a == 0 || a == b) && found != *right);
    server.abort();
}
