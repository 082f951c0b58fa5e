//! Kvasir.
