//! The loop of kills, short; `npm run bench -- store` runs 200.

use std::process::Command;

#[test]
fn ten_kills_cost_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kvasir-store-bench"))
        .args(["crash-loop", "--kills", "10", "--directory"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        report["acknowledged"].as_u64().unwrap() > 0,
        "nothing was written: {report}"
    );
}
