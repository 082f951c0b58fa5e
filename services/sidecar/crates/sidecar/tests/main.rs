//! Real sidecar processes and their parts. One binary: each one more would link the whole sidecar again.

mod common;
mod hostile;
mod profiles;

mod churn;
mod hand_over;
mod hostile_source;
mod levels;
mod otlp;
mod placements;
mod process;
mod steps;
mod store;
mod swaps;
mod tls;
mod unlike;
mod unreliable_source;
