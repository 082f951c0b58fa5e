//! Whole models on the simulated device: scores, chosen tokens, steps, and sidecar processes.

mod readings;
mod scores;
mod sidecars;
mod swaps;
mod tiny;
mod transfers;
