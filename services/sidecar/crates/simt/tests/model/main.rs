//! Whole models on the simulated device: scores, chosen tokens, steps, and sidecar processes.

mod coded_transfers;
mod readings;
mod scores;
mod sidecars;
mod sides;
mod spied;
mod swaps;
mod tiny;
mod transfers;
