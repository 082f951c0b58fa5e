//! The Execute stream: pipelining, order, what is refused, and what is remembered.

use crate::common::*;
use kvasir_sidecar::proto::common::ErrorReason;
use kvasir_sidecar::proto::kernel::{
    ExecuteRequest, HealthRequest, ListSpansRequest, SequenceSlice, SequenceStart, SliceOutcome,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const BLOCKS: [u32; 4] = [9, 2, 30, 4];
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn two_steps_are_in_flight_and_answers_keep_the_order() {
    let model = model();
    let sidecar = Sidecar::start(model.path()).await;
    let mut stream = sidecar.execute().await;
    let first = SequenceSlice {
        sample: true,
        ..slice(1, 0, prompt(1, 20))
    };
    // Decode step i takes the token that step i - 1 samples, sent before it is known.
    let mut requests = vec![ExecuteRequest {
        step_id: 1,
        starts: vec![start(1, 20, &BLOCKS)],
        slices: vec![first],
        ..ExecuteRequest::default()
    }];
    for step in 0..30 {
        let slice = SequenceSlice {
            token_count: 1,
            sample: true,
            ..slice(1, 20 + step, vec![])
        };
        requests.push(ExecuteRequest {
            step_id: u64::from(step) + 2,
            slices: vec![slice],
            ..ExecuteRequest::default()
        });
    }
    let mut pipelined = Vec::new();
    for (index, request) in requests.into_iter().enumerate() {
        stream.requests.send(request).await.expect("the stream is open");
        if index > 0 {
            let answer = soon(stream.answers.message())
                .await
                .expect("a step")
                .expect("an answer");
            assert_eq!(answer.step_id, index as u64);
            pipelined.push(sampled(&answer));
        }
    }
    pipelined.push(sampled(
        &soon(stream.answers.message())
            .await
            .expect("a step")
            .expect("an answer"),
    ));

    let mut one_by_one = sidecar.execute_after(stream).await;
    let first = SequenceSlice {
        sample: true,
        ..slice(1, 0, prompt(1, 20))
    };
    let answer = one_by_one
        .step(vec![start(1, 20, &BLOCKS)], vec![first], vec![])
        .await
        .expect("a prompt");
    assert_eq!(
        pipelined,
        [vec![sampled(&answer)], one_by_one.decode(1, 20, None, 30).await].concat()
    );
    let health = sidecar
        .kernel
        .clone()
        .health(HealthRequest {})
        .await
        .expect("health")
        .into_inner();
    assert_eq!((health.steps_done, health.current_step_nanos), (62, 0));
    let stats = sidecar.stats().await;
    assert_eq!(
        (
            stats.prompt_tokens_computed,
            stats.decode_tokens_computed,
            stats.sequences
        ),
        (40, 60, 1)
    );
    assert!(stats.device_nanos > 0);
}

#[tokio::test]
async fn a_sequence_ends_at_its_last_token_and_is_then_skipped() {
    let model = model();
    let sidecar = Sidecar::start(model.path()).await;
    let mut stream = sidecar.execute().await;
    let mut begin = start(1, 5, &BLOCKS);
    begin.sampling.as_mut().expect("sampling").max_tokens = 2;
    let first = SequenceSlice {
        sample: true,
        ..slice(1, 0, prompt(1, 5))
    };
    let answer = stream.step(vec![begin], vec![first], vec![]).await.expect("a prompt");
    assert_eq!(answer.results[0].outcome(), SliceOutcome::Sampled);
    let next = |position| SequenceSlice {
        token_count: 1,
        sample: true,
        ..slice(1, position, vec![])
    };
    let answer = stream.step(vec![], vec![next(5)], vec![]).await.expect("a step");
    assert_eq!(answer.results[0].outcome(), SliceOutcome::Stopped);
    let answer = stream.step(vec![], vec![next(6)], vec![]).await.expect("a step");
    assert_eq!(
        (answer.results[0].outcome(), answer.results[0].token.is_none()),
        (SliceOutcome::Skipped, true)
    );
    stream.step(vec![], vec![], vec![1]).await.expect("forgotten");
    assert_eq!(sidecar.stats().await.sequences, 0);
}

#[tokio::test]
async fn a_second_stream_is_refused_and_the_first_goes_on() {
    let model = model();
    let sidecar = Sidecar::start(model.path()).await;
    let mut stream = sidecar.execute().await;
    let (_requests, receiver) = mpsc::channel(1);
    let refused = sidecar
        .kernel
        .clone()
        .execute(ReceiverStream::new(receiver))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    stream
        .step(vec![start(1, 5, &BLOCKS)], vec![slice(1, 0, prompt(1, 5))], vec![])
        .await
        .expect("a step");
}

#[tokio::test]
async fn a_bad_step_ends_the_stream_and_the_next_stream_begins_empty() {
    let model = model();
    let sidecar = Sidecar::start(model.path()).await;
    let good = || slice(1, 0, prompt(1, 5));
    let mut far = start(1, 5, &BLOCKS);
    far.block_ids = vec![u32::MAX];
    let cases: Vec<(&str, Vec<SequenceStart>, SequenceSlice)> = vec![
        ("no such sequence", vec![], good()),
        ("no such block", vec![far], good()),
        (
            "no block for its tokens",
            vec![start(1, 20, &BLOCKS[..1])],
            slice(1, 0, prompt(1, 20)),
        ),
        (
            "a token beyond the vocabulary",
            vec![start(1, 5, &BLOCKS)],
            slice(1, 0, vec![VOCAB]),
        ),
        (
            "nothing sampled yet",
            vec![start(1, 5, &BLOCKS)],
            SequenceSlice {
                token_count: 1,
                ..slice(1, 0, vec![])
            },
        ),
        (
            "a count that lies",
            vec![start(1, 5, &BLOCKS)],
            SequenceSlice {
                token_count: 4,
                ..good()
            },
        ),
        (
            "beyond the last position",
            vec![start(1, 5, &BLOCKS)],
            SequenceSlice {
                start_position: u32::MAX,
                ..good()
            },
        ),
    ];
    let mut stream = sidecar.execute().await;
    for (name, starts, bad) in cases {
        let refused = stream.step(starts, vec![bad], vec![]).await.expect_err(name);
        assert_eq!(
            (refused.code(), reason(&refused)),
            (tonic::Code::InvalidArgument, ErrorReason::InvalidRequest),
            "{name}"
        );
        stream = sidecar.execute_after(stream).await;
        assert_eq!(sidecar.stats().await.sequences, 0, "{name}");
    }
    // A gap that leaves out the prompt's end (within a prompt, KV may come from elsewhere), and one between steps.
    stream
        .step(vec![start(1, 10, &BLOCKS)], vec![good()], vec![])
        .await
        .expect("a chunk");
    let refused = stream
        .step(vec![], vec![slice(1, 10, vec![1])], vec![])
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::InvalidRequest);
    stream = sidecar.execute_after(stream).await;
    stream.step_id = 1;
    let refused = stream
        .step(vec![start(1, 5, &BLOCKS)], vec![good()], vec![])
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::InvalidRequest);
    // And it still computes.
    let mut stream = sidecar.execute_after(stream).await;
    stream
        .step(vec![start(1, 5, &BLOCKS)], vec![good()], vec![])
        .await
        .expect("a step");
}

#[tokio::test]
async fn a_prompt_leaves_a_span_in_the_request_s_trace_and_one_below_it_for_each_chunk() {
    let model = model();
    let sidecar = Sidecar::start(model.path()).await;
    let mut stream = sidecar.execute().await;
    let begin = SequenceStart {
        traceparent: format!("00-{TRACE}-b7ad6b7169203331-01"),
        ..start(1, 20, &BLOCKS)
    };
    stream
        .step(vec![begin], vec![slice(1, 0, prompt(1, 20)[..8].to_vec())], vec![])
        .await
        .expect("a chunk");
    let last = SequenceSlice {
        sample: true,
        ..slice(1, 8, prompt(1, 20)[8..].to_vec())
    };
    stream.step(vec![], vec![last], vec![]).await.expect("a chunk");
    stream.decode(1, 20, None, 3).await;
    let request = ListSpansRequest { trace_id: TRACE.into() };
    let spans = sidecar
        .kernel
        .clone()
        .list_spans(request)
        .await
        .expect("spans")
        .into_inner()
        .spans;
    let [first, second, span] = spans.as_slice() else {
        panic!("{spans:?}")
    };
    assert_eq!(
        (span.name.as_str(), span.parent_span_id.as_str()),
        ("sidecar.prefill", "b7ad6b7169203331")
    );
    assert_eq!(
        (
            span.attributes["kvasir.prompt_tokens"].as_str(),
            span.attributes["kvasir.chunks"].as_str()
        ),
        ("20", "2")
    );
    assert!(span.end_unix_nanos > span.start_unix_nanos);
    for (chunk, start, tokens) in [(first, "0", "8"), (second, "8", "12")] {
        assert_eq!(
            (chunk.name.as_str(), &chunk.parent_span_id),
            ("prefill.chunk", &span.span_id)
        );
        let attribute = |key: &str| chunk.attributes[key].as_str();
        assert_eq!(
            (attribute("kvasir.start_position"), attribute("kvasir.tokens")),
            (start, tokens)
        );
        assert!(span.start_unix_nanos <= chunk.start_unix_nanos && chunk.end_unix_nanos <= span.end_unix_nanos);
    }
}
