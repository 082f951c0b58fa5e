//! The KV plane under mutual TLS: who may pull from whom, and certificates that change.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use kvasir_sidecar::certificates::Authority;
use kvasir_sidecar::cli::TlsFlags;
use kvasir_sidecar::proto::common::{ErrorReason, KvSource};
use kvasir_sidecar::proto::kernel::FetchResponse;
use kvasir_sidecar::tls::{Tls, TlsFiles};
use kvasir_sidecar::transfer_listener::connections;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::Status;

const LENGTH: u32 = 40;
const BLOCKS: [u32; 3] = [2, 0, 1];
const DAY: Duration = Duration::from_secs(86_400);

/// An authority with a certificate for `role/w`.
fn home(role: &str, lifetime: Duration) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary directory");
    issue(home.path(), role, lifetime);
    home
}

fn issue(home: &Path, role: &str, lifetime: Duration) {
    let identity = format!("{role}/w").parse().expect("an identity");
    let authority = Authority::open(home).expect("an authority");
    authority
        .issue(&identity, &["127.0.0.1".into()], lifetime)
        .expect("a certificate");
}

/// One more identity of an authority that is there, in a directory of its own.
fn sibling(of: &TempDir, role: &str, lifetime: Duration) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary directory");
    for name in ["ca.pem", "ca.key"] {
        fs::copy(of.path().join(name), home.path().join(name)).expect("a copy");
    }
    issue(home.path(), role, lifetime);
    home
}

/// What a process of that role speaks TLS with.
fn identity_of(home: &TempDir, role: &str) -> Arc<Tls> {
    let path = |name: &str| Some(home.path().join(name));
    let flags = TlsFlags {
        tls_ca: path("ca.pem"),
        tls_cert: path("w.pem"),
        tls_key: path("w.key"),
    };
    let files = TlsFiles::from_flags(&flags).expect("all three").expect("files");
    let identity = format!("{role}/w").parse().expect("an identity");
    Arc::new(Tls::load(files, identity).expect("they can be read"))
}

async fn start_as(model: &Path, role: &str, home: Option<&TempDir>) -> Sidecar {
    let paths = home.map(|home| ["ca.pem", "w.pem", "w.key"].map(|name| home.path().join(name).display().to_string()));
    let mut flags = vec!["--role", role];
    if let Some([ca, certificate, key]) = &paths {
        flags.extend(["--tls-ca", ca, "--tls-cert", certificate, "--tls-key", key]);
    }
    Sidecar::start_with(model, &flags).await
}

/// A sidecar whose prompts others pull.
struct Source {
    sidecar: Sidecar,
    execution: Execution,
    pulls: u8,
}

impl Source {
    async fn start(model: &Path, role: &str, home: Option<&TempDir>) -> Self {
        let sidecar = start_as(model, role, home).await;
        let execution = sidecar.execute().await;
        Self {
            sidecar,
            execution,
            pulls: 0,
        }
    }

    /// Has one more prompt computed, and pulled by the sink.
    async fn pulled_by(&mut self, sink: &Sidecar) -> Result<FetchResponse, Status> {
        self.pulled_at(self.sidecar.source(), sink).await
    }

    /// The same, where `source` says that it is to be had.
    async fn pulled_at(&mut self, source: KvSource, sink: &Sidecar) -> Result<FetchResponse, Status> {
        self.pulls += 1;
        let sequence_id = u64::from(self.pulls);
        let ticket = self.sidecar.publish(self.pulls, sequence_id, LENGTH, &BLOCKS).await;
        let slices = vec![slice(sequence_id, 0, prompt(1, LENGTH))];
        let starts = vec![start(sequence_id, LENGTH, &BLOCKS)];
        self.execution.step(starts, slices, vec![]).await.expect("a prompt");
        let request = fetch_request(source, ticket, self.pulls, LENGTH, &BLOCKS);
        let outcome = outcome(sink.fetch(request).await.expect("it begins")).await;
        self.sidecar.release(self.pulls).await;
        self.execution
            .step(vec![], vec![], vec![sequence_id])
            .await
            .expect("it is dropped");
        outcome
    }
}

fn expect_refusal(outcome: Result<FetchResponse, Status>, expected: ErrorReason, words: &str) {
    let status = outcome.expect_err("it is refused");
    assert_eq!(reason(&status), expected, "{status}");
    assert!(status.message().contains(words), "{status}");
}

#[tokio::test]
async fn kv_moves_under_tls_between_the_roles_that_may_and_no_others() {
    let model = model();
    let prefill = home("prefill", DAY);
    let mut source = Source::start(model.path(), "prefill", Some(&prefill)).await;
    let bytes = u64::from(LENGTH) * u64::from(source.sidecar.about.kv_bytes_per_token);
    for role in ["prefill", "decode", "mixed"] {
        let own = sibling(&prefill, role, DAY);
        let sink = start_as(model.path(), role, Some(&own)).await;
        assert_eq!(source.pulled_by(&sink).await.expect("it moves").data_bytes, bytes);
    }

    let decode = sibling(&prefill, "decode", DAY);
    let sink = start_as(model.path(), "decode", Some(&decode)).await;
    // Somebody else of the same cluster, at an address where KV was said to be.
    let gateway = sibling(&prefill, "gateway", DAY);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let mut elsewhere = source.sidecar.source();
    elsewhere.shard_addresses = vec![listener.local_addr().expect("bound").to_string()];
    let _incoming = connections(listener, Some(identity_of(&gateway, "gateway")));
    let words = "expected role prefill or decode or mixed or store, found gateway/w";
    expect_refusal(
        source.pulled_at(elsewhere, &sink).await,
        ErrorReason::Unavailable,
        words,
    );
}

#[tokio::test]
async fn plain_and_tls_do_not_mix_and_both_sides_say_so() {
    let model = model();
    let prefill = home("prefill", DAY);
    let decode = sibling(&prefill, "decode", DAY);
    let mut source = Source::start(model.path(), "prefill", Some(&prefill)).await;
    let mut plain = Source::start(model.path(), "mixed", None).await;
    let words = "this process takes mutual TLS only and the caller speaks plain";
    expect_refusal(
        source.pulled_by(&plain.sidecar).await,
        ErrorReason::PermissionDenied,
        words,
    );

    let sink = start_as(model.path(), "decode", Some(&decode)).await;
    expect_refusal(
        plain.pulled_by(&sink).await,
        ErrorReason::Unavailable,
        "it speaks no TLS",
    );
}

#[tokio::test]
async fn expired_and_foreign_certificates_are_refused() {
    let model = model();
    let prefill = home("prefill", DAY);
    let mut source = Source::start(model.path(), "prefill", Some(&prefill)).await;
    let expired = sibling(&prefill, "decode", Duration::ZERO);
    let sink = start_as(model.path(), "decode", Some(&expired)).await;
    // Its last second is the one that it was made in.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    expect_refusal(
        source.pulled_by(&sink).await,
        ErrorReason::Unavailable,
        "CertificateExpired",
    );

    let foreign = home("decode", DAY);
    let sink = start_as(model.path(), "decode", Some(&foreign)).await;
    expect_refusal(source.pulled_by(&sink).await, ErrorReason::Unavailable, "UnknownIssuer");

    // Trusts the source, and is signed by somebody that the source does not know.
    fs::copy(prefill.path().join("ca.pem"), foreign.path().join("ca.pem")).expect("a copy");
    expect_refusal(source.pulled_by(&sink).await, ErrorReason::Unavailable, "UnknownCA");
}

#[tokio::test]
async fn changed_certificates_are_used_by_the_next_connection() {
    let model = model();
    let (prefill, decode) = (home("prefill", DAY), home("decode", DAY));
    let mut source = Source::start(model.path(), "prefill", Some(&prefill)).await;
    let sink = start_as(model.path(), "decode", Some(&decode)).await;
    expect_refusal(source.pulled_by(&sink).await, ErrorReason::Unavailable, "UnknownIssuer");

    // The sink joins the source's authority. What is half there changes nothing.
    fs::write(decode.path().join("w.pem"), "half").expect("written");
    expect_refusal(source.pulled_by(&sink).await, ErrorReason::Unavailable, "UnknownIssuer");
    for name in ["ca.pem", "ca.key"] {
        fs::copy(prefill.path().join(name), decode.path().join(name)).expect("a copy");
    }
    issue(decode.path(), "decode", DAY);
    source.pulled_by(&sink).await.expect("it moves");

    // A connection that is there goes on when the source's certificate changes.
    issue(prefill.path(), "prefill", DAY);
    source.pulled_by(&sink).await.expect("it moves");
}
