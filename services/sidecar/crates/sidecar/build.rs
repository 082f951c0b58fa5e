//! Compiles the protos with a vendored protoc, so that no system package is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../../../proto");
    let files: Vec<PathBuf> = [
        "common/v1/common",
        "transfer/v1/transfer_service",
        "kernel/v1/kernel_service",
        "kernel/v1/store_service",
    ]
    .iter()
    .map(|name| root.join(format!("kvasir/{name}.proto")))
    .collect();
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let protoc = protoc_bin_vendored::protoc_bin_path()?;
    let (kernel, others): (Vec<PathBuf>, Vec<PathBuf>) = files
        .into_iter()
        .partition(|file| file.parent().is_some_and(|parent| parent.ends_with("kernel/v1")));

    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(&protoc);
    // Frames are sliced out of the receive buffer instead of being copied.
    config.bytes([".kvasir.transfer.v1.Frame.data"]);
    // Buffers of a frame's size, where frames travel; steps are small.
    tonic_prost_build::configure()
        .codec_path("crate::codec::FrameCodec")
        .compile_with_config(config, &others, std::slice::from_ref(&root))?;

    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(&protoc);
    // Beside the others: the packages it imports would be written again, empty.
    let kernel_dir = PathBuf::from(std::env::var("OUT_DIR")?).join("kernel");
    std::fs::create_dir_all(&kernel_dir)?;
    tonic_prost_build::configure()
        .out_dir(kernel_dir)
        .extern_path(".kvasir.common.v1", "crate::proto::common")
        .extern_path(".kvasir.transfer.v1", "crate::proto::transfer")
        .compile_with_config(config, &kernel, &[root])?;
    Ok(())
}
