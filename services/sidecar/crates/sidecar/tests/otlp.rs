//! Spans leave by OTLP when an endpoint is set.

use crate::common::*;
use kvasir_sidecar::proto::kernel::SequenceStart;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0
            .send(request.into_inner())
            .map_err(|_| Status::unavailable("the test ended"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A sidecar that exports there, with one finished prompt.
async fn prefilled(endpoint: &str) -> Sidecar {
    let model = model();
    let sidecar = Sidecar::start_exporting(model.path(), endpoint).await;
    let mut stream = sidecar.execute().await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into();
    let begin = SequenceStart {
        traceparent,
        ..start(1, 20, &[0, 1])
    };
    stream
        .step(vec![begin], vec![slice(1, 0, prompt(1, 20))], vec![])
        .await
        .expect("a prompt");
    sidecar
}

/// A collector, and what it got of one finished prompt when the sidecar had ended in the way of `end`.
async fn exported(end: impl AsyncFnOnce(Sidecar)) -> ExportTraceServiceRequest {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, mut requests) = mpsc::unbounded_channel();
    let collector = TraceServiceServer::new(Collector(sender));
    let server = tokio::spawn(
        Server::builder()
            .add_service(collector)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    end(prefilled(&endpoint).await).await;
    let request = soon(requests.recv()).await.expect("an export");
    server.abort();
    request
}

/// The spans `sidecar.prefill` and `prefill.chunk` of the caller's trace, one below the other.
fn expect_prompt(request: &ExportTraceServiceRequest) {
    let of_resource = &request.resource_spans[0];
    let resource = of_resource.resource.as_ref().expect("a resource");
    assert!(resource.attributes.iter().any(|pair| pair.key == "service.name"));
    let spans = &of_resource.scope_spans[0].spans;
    let named = |name: &str| spans.iter().find(|span| span.name == name).expect(name);
    let (prompt, chunk) = (named("sidecar.prefill"), named("prefill.chunk"));
    assert_eq!((prompt.trace_id[0], prompt.parent_span_id[0]), (0x0a, 0xb7));
    assert_eq!((chunk.trace_id[0], &chunk.parent_span_id), (0x0a, &prompt.span_id));
    assert!(prompt.start_time_unix_nano <= chunk.start_time_unix_nano);
    assert!(chunk.end_time_unix_nano <= prompt.end_time_unix_nano);
}

#[tokio::test]
async fn what_is_not_sent_yet_is_sent_at_the_end() {
    expect_prompt(&exported(async |mut sidecar| sidecar.terminate().await).await);
}

#[tokio::test]
async fn it_is_sent_as_well_when_the_worker_is_gone() {
    let request = exported(async |mut sidecar| {
        drop(sidecar.process.stdin.take());
        assert!(soon(sidecar.process.wait()).await.expect("it ends").success());
    });
    expect_prompt(&request.await);
}

#[tokio::test]
async fn a_collector_that_is_not_there_holds_nobody_up() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port")
        .local_addr()
        .expect("an address");
    prefilled(&format!("http://{free}")).await.terminate().await;
}
