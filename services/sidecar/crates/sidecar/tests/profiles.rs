//! A codec profile of the tiny model, and pulls at its levels.

use std::path::{Path, PathBuf};

use kvasir_sidecar::proto::kernel::FetchResponse;
use kvasir_sidecar::proto::transfer::TokenLevel;
use tokio::process::Command;

use crate::common::prompt;

/// A profile with a fast and a dense level, made from the model's own KV.
pub async fn codec_profile(model: &Path) -> PathBuf {
    let items: String = (0..8u32)
        .map(|seed| {
            let tokens = prompt(seed, 96);
            let suffix = &tokens[..4];
            let item = serde_json::json!({
                "id": format!("{seed}"), "prefix": tokens, "documents": [], "suffix": suffix, "max_tokens": 2, "stop_token_ids": [],
            });
            format!("{item}\n")
        })
        .collect();
    let (listed, out) = (model.join("items.jsonl"), model.join("made.kvcp"));
    std::fs::write(&listed, items).expect("a file");
    let made = Command::new(env!("CARGO_BIN_EXE_kvasir-sidecar"))
        .args([
            "codec-profile",
            "--threads",
            "1",
            "--kv-bytes",
            "1MiB",
            "--kv-dtype",
            "f32",
            "--block-size",
            "16",
        ])
        .args([
            "--sensitivity-items",
            "0",
            "--levels",
            "quick:fast:0.05,small:dense:0.3",
        ])
        .arg("--model")
        .arg(model)
        .arg("--items")
        .arg(listed)
        .arg("--out")
        .arg(&out)
        .output();
    let made = made.await.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    out
}

/// Spans by their ends and levels, as they travel.
pub fn token_levels(spans: &[(u32, u32)]) -> Vec<TokenLevel> {
    let one = |(token_end, level): &(u32, u32)| TokenLevel {
        token_end: *token_end,
        level: *level,
    };
    spans.iter().map(one).collect()
}

/// Bytes that the elements of a fetch take raw.
pub fn raw_bytes(report: &FetchResponse) -> u64 {
    report.levels.iter().map(|level| level.raw_bytes).sum()
}
