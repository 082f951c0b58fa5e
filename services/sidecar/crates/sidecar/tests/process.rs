//! The process: it shares its worker's fate, and says in one line why it does not start.

use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::common::*;
use kvasir_sidecar::certificates::Authority;
use tokio::process::Command;

async fn failed(mut command: Command, stdin: &str) -> String {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut pipe = child.stdin.take().expect("stdin is piped");
    // A process that ended already says why below.
    let _ = tokio::io::AsyncWriteExt::write_all(&mut pipe, stdin.as_bytes()).await;
    let output = soon(child.wait_with_output()).await.expect("it ends");
    drop(pipe);
    assert_eq!(output.status.code(), Some(1));
    one_line(&output)
}

fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert!(
        text.starts_with("error: ") && text.trim_end().lines().count() == 1,
        "{text}"
    );
    text
}

#[tokio::test]
async fn it_ends_when_its_worker_s_pipe_closes() {
    let model = model();
    let mut sidecar = Sidecar::start(model.path()).await;
    let mut stream = sidecar.execute().await;
    stream
        .step(vec![start(1, 5, &[0])], vec![slice(1, 0, prompt(1, 5))], vec![])
        .await
        .expect("a step");
    drop(sidecar.process.stdin.take());
    assert!(soon(sidecar.process.wait()).await.expect("it ends").success());
    assert!(soon(stream.answers.message()).await.is_err());
    assert!(!sidecar.socket.exists());
}

#[tokio::test]
async fn it_ends_in_order_when_told() {
    let model = model();
    let mut sidecar = Sidecar::start(model.path()).await;
    let mode = std::fs::metadata(&sidecar.socket)
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    sidecar.terminate().await;
    assert!(!sidecar.socket.exists());
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_one_line() {
    let model = model();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("s");
    let key = format!("{}\n", "00".repeat(32));
    let serve = |extra: &[&str]| serve_command(model.path(), &socket, extra);
    assert!(failed(serve(&[]), "not a key\n").await.contains("64 hex digits"));
    assert!(
        failed(serve(&["--block-size", "48"]), &key)
            .await
            .contains("48; use 16, 32 or 64")
    );
    assert!(failed(serve(&["--kv-bytes", "1KiB"]), &key).await.contains("1024"));
    assert!(
        failed(serve(&["--listen", "192.0.2.1:9"]), &key)
            .await
            .contains("192.0.2.1:9")
    );
    if !kvasir_cuda::driver::CudaDevice::has_driver() {
        let told = failed(serve(&["--device", "cuda:0", "--kv-dtype", "bf16"]), &key).await;
        assert!(told.contains("no NVIDIA driver"), "{told}");
    }
    let told = failed(serve(&["--device", "cuda:0"]), &key).await;
    assert!(told.contains("--kv-dtype is not bf16"), "{told}");
    let absent = directory.path().join("absent");
    assert!(
        failed(serve_command(&absent, &socket, &[]), &key)
            .await
            .contains("absent")
    );

    assert!(failed(serve(&["--tls-ca", "ca.pem"]), &key).await.contains("together"));
    let tls = directory.path().join("tls");
    let authority = Authority::open(&tls).expect("an authority");
    for identity in ["decode/w", "mixed/other"] {
        let identity = identity.parse().expect("an identity");
        authority
            .issue(&identity, &[], Duration::from_secs(60))
            .expect("a certificate");
    }
    let path = |name: &str| tls.join(name).display().to_string();
    let files = |cert: &str, key: &str| {
        [
            "--tls-ca",
            &path("ca.pem"),
            "--tls-cert",
            &path(cert),
            "--tls-key",
            &path(key),
        ]
        .map(str::to_owned)
    };
    for (cert, key_file, words) in [
        ("w.pem", "w.key", "is the certificate of decode/w, this is mixed/w"),
        ("absent.pem", "w.key", "absent.pem"),
        ("w.key", "w.key", "holds no certificate"),
        ("ca.pem", "w.key", "no URI name"),
    ] {
        let flags = files(cert, key_file);
        let told = failed(serve(&flags.each_ref().map(String::as_str)), &key).await;
        assert!(told.contains(words), "{told}");
    }
    let flags = files("w.pem", "other.key");
    let as_decode = [&["--role", "decode"], &flags.each_ref().map(String::as_str)[..]].concat();
    assert!(failed(serve(&as_decode), &key).await.contains("do not fit each other"));

    let weights = model.path().join("model.safetensors");
    let whole = std::fs::read(&weights).expect("weights");
    std::fs::write(&weights, &whole[..whole.len() - 7]).expect("shortened");
    assert!(failed(serve(&[]), &key).await.contains("model.safetensors"));
}

#[tokio::test]
async fn inspect_lists_every_tensor_and_generate_agrees_with_steps() {
    let model = model();
    let run = async |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvasir-sidecar"));
        let output = soon(command.args(args).output()).await.expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let path = model.path().to_str().expect("a plain path");
    let about = run(&["inspect", path]).await;
    // Embedding, final norm, and nine for each of four layers.
    assert_eq!(
        (about["tensors"].as_array().map(Vec::len), about["vocab_size"].as_u64()),
        (Some(38), Some(128))
    );

    let tokens = prompt(1, 20).iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let flags = [
        "--kv-dtype",
        "f32",
        "--block-size",
        "16",
        "--kv-bytes",
        "1MiB",
        "--threads",
        "1",
    ];
    let args = [
        &[
            "generate",
            "--model",
            path,
            "--tokens",
            &tokens,
            "--max-tokens",
            "12",
            "--chunk",
            "7",
        ],
        &flags[..],
    ]
    .concat();
    let generated = run(&args).await;
    let sidecar = Sidecar::start(model.path()).await;
    let mut stream = sidecar.execute().await;
    let last = kvasir_sidecar::proto::kernel::SequenceSlice {
        sample: true,
        ..slice(1, 0, prompt(1, 20))
    };
    let answer = stream
        .step(vec![start(1, 20, &[3, 1, 2])], vec![last], vec![])
        .await
        .expect("a prompt");
    let expected = [vec![sampled(&answer)], stream.decode(1, 20, None, 11).await].concat();
    assert_eq!(generated["outputs"][0], serde_json::json!(expected));
}
