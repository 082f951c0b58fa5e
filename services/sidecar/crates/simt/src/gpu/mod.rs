//! What runs on a real GPU: the conformance suite there, the speed of kernels and of whole models beside the device's own ceilings, and two
//! sidecars. A simulated GPU takes all of it.

mod bench;
mod check;
mod clocked;
mod cluster;
mod model_bench;
mod model_files;
mod models;
mod sidecar_process;
mod size;
mod swaps;

pub use bench::{Ceilings, bench};
pub use check::{CheckSize, check, suite};
pub use clocked::Clocked;
pub use cluster::{ClusterSize, cluster};
pub use model_bench::{ModelRun, model_bench, model_bench_head};
pub use model_files::write_model;
pub use size::Size;
