//! The sidecar of a Kvasir worker: holds a model and its KV on one device, runs steps, and moves KV between sidecars.
//!
//! Two services over one shared state ([`state::Sidecar`]): the worker's ([`kernel_service`], on a Unix socket) and other sidecars'
//! ([`transfer_service`], on TCP). One thread owns the engine ([`device`]).
#![forbid(unsafe_code)]

mod arriving;
pub mod bench_codec;
pub mod bench_engine;
pub mod bench_pull;
pub mod bench_swap;
pub mod block_uses;
pub mod builtin_profile;
pub mod certificates;
pub mod chunk_coder;
pub mod cli;
pub mod codec;
pub mod codec_profile_flag;
pub mod codec_speed;
pub mod coders;
pub mod coding;
pub mod connections;
pub mod device;
pub mod device_coder;
pub mod device_flag;
pub mod errors;
pub mod exports;
pub mod fetch;
pub mod fetches;
pub mod frames;
pub mod generate;
pub mod gpus;
pub mod host_coder;
pub mod http2;
pub mod identity;
pub mod inspect;
pub mod intervals;
pub mod kernel_service;
pub mod kv_plane;
pub mod layouts;
pub mod levels;
pub mod loading;
pub mod memory;
pub mod packing;
pub mod plan_from_wire;
pub mod proto;
pub mod quality;
mod receiving;
pub mod run;
pub mod serve;
mod serving;
pub mod slots;
pub mod state;
pub mod stats;
pub mod store_role;
pub mod swapping;
pub mod swaps;
pub mod telemetry;
pub mod text_kv;
pub mod ticket;
pub mod tls;
pub mod transfer_listener;
pub mod transfer_service;
pub mod turns;
