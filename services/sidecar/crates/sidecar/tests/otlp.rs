//! Spans leave by OTLP when an endpoint is set.

mod common;

use common::*;
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

#[tokio::test]
async fn what_is_not_sent_yet_is_sent_at_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, mut requests) = mpsc::unbounded_channel();
    let collector = TraceServiceServer::new(Collector(sender));
    let server = tokio::spawn(
        Server::builder()
            .add_service(collector)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    prefilled(&endpoint).await.terminate().await;
    let request = soon(requests.recv()).await.expect("an export");
    let of_resource = &request.resource_spans[0];
    let resource = of_resource.resource.as_ref().expect("a resource");
    assert!(resource.attributes.iter().any(|pair| pair.key == "service.name"));
    let span = &of_resource.scope_spans[0].spans[0];
    assert_eq!(
        (span.name.as_str(), span.trace_id[0], span.parent_span_id[0]),
        ("sidecar.prefill", 0x0a, 0xb7)
    );
    server.abort();
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
