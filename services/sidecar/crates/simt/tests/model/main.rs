//! Whole models on the simulated device: scores, chosen tokens, steps, and sidecar processes.

mod readings;
mod scores;
mod sidecars;
mod tiny;
mod transfers;
