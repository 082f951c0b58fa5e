//! Compiles the protos with a vendored protoc, so that no system package is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../../../proto");
    let files: Vec<PathBuf> = [
        "common/v1/common",
        "transfer/v1/transfer_service",
        "kernel/v1/kernel_service",
    ]
    .iter()
    .map(|name| root.join(format!("kvasir/{name}.proto")))
    .collect();
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(protoc_bin_vendored::protoc_bin_path()?);
    // Frames are sliced out of the receive buffer instead of being copied.
    config.bytes([".kvasir.transfer.v1.Frame.data"]);
    tonic_prost_build::configure().compile_with_config(config, &files, &[root])?;
    Ok(())
}
