//! Flags.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench_pull::BenchPull;
use crate::bench_swap::BenchSwapFlags;
use crate::codec_profile_flag::CodecProfileFlag;
use crate::device_flag::{DeviceFlag, share};
use crate::identity::{Identity, PeerRole};
use crate::quality::profile::LevelFlag;

/// Holds a model and its KV on one device: runs steps for a worker and moves KV between sidecars.
#[derive(Debug, Parser)]
#[command(name = "kvasir-sidecar", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve one worker until its end of stdin closes
    Serve(ServeFlags),
    /// Keep KV blocks in memory and on disk for one store, until its end of stdin closes
    Store(StoreFlags),
    /// Check a model's files and print its configuration as JSON
    Inspect {
        /// Directory or .gguf file
        model: PathBuf,
    },
    /// Generate greedily without a worker and print JSON; for comparisons
    Generate(GenerateFlags),
    /// Measure decode and prefill speed and print JSON
    BenchEngine(BenchEngineFlags),
    /// Measure what answers lose when KV is reused; prints JSON lines
    Quality(QualityFlags),
    /// Measure what answers lose when KV is encoded and decoded; prints JSON lines
    QualityCodec(QualityCodecFlags),
    /// Make a model's codec profile from texts; prints JSON
    CodecProfile(CodecProfileFlags),
    /// Measure the speed of the codec's levels and print JSON
    BenchCodec(BenchCodecFlags),
    /// Make certificates for mutual TLS, with a small authority of their own
    Certificates(CertificateFlags),
    /// Measure KV pulls between two processes
    #[command(subcommand)]
    BenchPull(BenchPull),
    /// Measure KV swaps to host memory of a CPU's pool and print JSON
    BenchSwap(BenchSwapFlags),
}

/// Mutual TLS on the KV plane: all three, or none for plain.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsFlags {
    /// Certificates of the authorities that are trusted, as PEM
    #[arg(long, env = "KVASIR_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
    /// This process's certificate and chain, as PEM
    #[arg(long, env = "KVASIR_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, as PEM
    #[arg(long, env = "KVASIR_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
}

/// What certificates to make.
#[derive(Debug, Clone, Args)]
pub struct CertificateFlags {
    /// Directory for ca.pem, ca.key, ID.pem and ID.key; an authority that is there is used
    #[arg(long)]
    pub dir: PathBuf,
    /// For whom, as ROLE/ID; several times for several
    #[arg(long, required = true)]
    pub identity: Vec<Identity>,
    /// Names and addresses that clients which check host names may use
    #[arg(long, default_values = ["127.0.0.1", "::1", "localhost"])]
    pub host: Vec<String>,
    /// Hours until they expire
    #[arg(long, default_value_t = 720)]
    pub hours: u64,
}

/// What a sidecar is for; told to people, the same engine serves all.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Role {
    /// Computes prompts
    Prefill,
    /// Generates
    Decode,
    /// Both
    Mixed,
}

impl From<Role> for PeerRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Prefill => Self::Prefill,
            Role::Decode => Self::Decode,
            Role::Mixed => Self::Mixed,
        }
    }
}

/// Element type of the KV pool.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Dtype {
    /// binary32
    F32,
    /// binary16
    F16,
    /// bfloat16
    Bf16,
}

impl From<Dtype> for kvasir_engine::KvDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// How the model's matrices are kept.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WeightFlag {
    /// As the file has them
    Stored,
    /// Expanded to f32: exact, and several times the memory
    F32,
    /// Rounded to bf16, and so are activations; sums in f32
    Bf16,
    /// Rounded to 8 bits, one scale for 32 weights
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<WeightFlag> for kvasir_engine::WeightFormat {
    fn from(flag: WeightFlag) -> Self {
        match flag {
            WeightFlag::Stored => Self::Stored,
            WeightFlag::F32 => Self::F32,
            WeightFlag::Bf16 => Self::Bf16,
            WeightFlag::Q8_0 => Self::Q8_0,
        }
    }
}

/// How to run a model.
#[derive(Debug, Clone, Args)]
pub struct EngineFlags {
    /// Directory of a Hugging Face model, or a .gguf file
    #[arg(long, env = "KVASIR_MODEL")]
    pub model: PathBuf,
    /// Where to compute: cpu, cuda:N for a GPU, or auto for the first GPU that can, and the CPU where none can
    #[arg(long, default_value = "auto", env = "KVASIR_DEVICE")]
    pub device: DeviceFlag,
    /// Memory for KV, e.g. 512MiB. Without it 512MiB on a CPU, taken as it is used, and on a GPU what --kv-memory leaves
    #[arg(long, value_parser = bytes, env = "KVASIR_KV_BYTES")]
    pub kv_bytes: Option<u64>,
    /// Host memory for KV that makes room in the pool, e.g. 4GiB; 0: none. Without it 4GiB on a GPU, taken with the first swap, and none on a CPU
    #[arg(long, value_parser = bytes_or_none, env = "KVASIR_SWAP_BYTES")]
    pub swap_bytes: Option<u64>,
    /// Share of a GPU's memory for weights, activations and KV together
    #[arg(long, default_value_t = 0.9, value_parser = share, env = "KVASIR_KV_MEMORY")]
    pub kv_memory: f64,
    /// On a GPU: the same bits whatever else is in the batch, and slower. On a CPU it is always so
    #[arg(long, env = "KVASIR_DETERMINISTIC")]
    pub deterministic: bool,
    /// Folder of the GPU's kernels, which `npm run kernels` makes. Without it `kernels` beside the program, then .cache/kernels
    #[arg(long, env = "KVASIR_KERNELS")]
    pub kernels: Option<PathBuf>,
    /// Tokens per block: 16, 32 or 64
    #[arg(long, default_value_t = 32, env = "KVASIR_BLOCK_SIZE")]
    pub block_size: usize,
    /// Element type of KV
    #[arg(long, value_enum, default_value_t = Dtype::Bf16, env = "KVASIR_KV_DTYPE")]
    pub kv_dtype: Dtype,
    /// Tensor-parallel shards, a divisor of the model's KV heads: each has its part of the heads, memory of its own for their KV and, when
    /// serving, an address of its own for pulls. All run on the same threads
    #[arg(long, default_value_t = 1, env = "KVASIR_SHARDS")]
    pub shards: usize,
    /// Compute threads; 0 takes one for each core
    #[arg(long, default_value_t = 0, env = "KVASIR_THREADS")]
    pub threads: usize,
    /// How the model's matrices are kept
    #[arg(long, value_enum, default_value_t = WeightFlag::Stored, env = "KVASIR_WEIGHTS")]
    pub weights: WeightFlag,
    /// Most tokens in one step
    #[arg(long, default_value_t = 2048, env = "KVASIR_STEP_TOKEN_MAX")]
    pub step_token_max: usize,
}

impl EngineFlags {
    /// Threads to start.
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        }
    }
}

/// How to serve.
#[derive(Debug, Clone, Args)]
pub struct ServeFlags {
    /// What the worker does
    #[arg(long, value_enum, default_value_t = Role::Mixed)]
    pub role: Role,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineFlags,
    /// Unix socket for the worker
    #[arg(long)]
    pub socket: PathBuf,
    /// Address for other sidecars; port 0 takes a free one. Shard i listens on the port after it that is i higher
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Host that others connect to, when it is not the one listened on
    #[arg(long)]
    pub advertise: Option<String>,
    /// Threads that move KV; each connection stays on one
    #[arg(long, default_value_t = default_transfer_threads(), env = "KVASIR_TRANSFER_THREADS")]
    pub transfer_threads: usize,
    /// The worker's stable name
    #[arg(long)]
    pub worker_id: String,
    /// The worker's incarnation
    #[arg(long)]
    pub epoch: u64,
    /// The model's codec profile, for lossy levels: a file that others have too, `auto` for codec.kvcp beside the model where there is one, or `none`
    #[arg(long, default_value = "auto")]
    pub codec_profile: CodecProfileFlag,
    /// Certificates, the worker's own.
    #[command(flatten)]
    pub tls: TlsFlags,
}

/// How to keep blocks.
#[derive(Debug, Clone, Args)]
pub struct StoreFlags {
    /// Layout of the blocks: a serialised kvasir.common.v1.KvLayout, in hexadecimal
    #[arg(long)]
    pub layout: String,
    /// Memory for blocks, e.g. 1GiB; taken as it is used
    #[arg(long, default_value = "256MiB", value_parser = bytes)]
    pub memory_bytes: u64,
    /// Directory of the disk tier; without one there is none
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// Bytes of the disk tier
    #[arg(long, default_value = "1GiB", value_parser = bytes)]
    pub disk_bytes: u64,
    /// Bytes of one segment file
    #[arg(long, default_value = "64MiB", value_parser = bytes)]
    pub segment_bytes: u64,
    /// Blocks that may be on their way in or out
    #[arg(long, default_value_t = 256)]
    pub staging_blocks: u32,
    /// Unix socket for the store
    #[arg(long)]
    pub socket: PathBuf,
    /// Address for other sidecars; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Host that others connect to, when it is not the one listened on
    #[arg(long)]
    pub advertise: Option<String>,
    /// Threads that move KV; each connection stays on one
    #[arg(long, default_value_t = default_transfer_threads(), env = "KVASIR_TRANSFER_THREADS")]
    pub transfer_threads: usize,
    /// The store's stable name
    #[arg(long)]
    pub store_id: String,
    /// The store's incarnation
    #[arg(long)]
    pub epoch: u64,
    /// The codec profile of the layout's model, for lending at lossy levels: the same file that its workers have, `auto` for the one beside --model,
    /// or `none`
    #[arg(long, default_value = "auto")]
    pub codec_profile: CodecProfileFlag,
    /// The layout's model, where it is on this machine: a directory or a .gguf file
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Certificates, the store's own.
    #[command(flatten)]
    pub tls: TlsFlags,
}

/// What to generate.
#[derive(Debug, Clone, Args)]
pub struct GenerateFlags {
    /// The engine.
    #[command(flatten)]
    pub engine: EngineFlags,
    /// Prompt as token ids, e.g. 1,2,3
    #[arg(long, value_delimiter = ',', required_unless_present = "batch")]
    pub tokens: Vec<u32>,
    /// JSON file with a list of prompts, run in one mixed batch
    #[arg(long, conflicts_with = "tokens")]
    pub batch: Option<PathBuf>,
    /// Tokens to generate
    #[arg(long, default_value_t = 16)]
    pub max_tokens: u32,
    /// Prompt tokens of one sequence in one step
    #[arg(long, default_value_t = 512)]
    pub chunk: usize,
    /// Write the prompt's logits here: f32, little endian, [tokens, vocabulary]
    #[arg(long)]
    pub logits_out: Option<PathBuf>,
}

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct BenchEngineFlags {
    /// The engine; for its model also `random:SHAPE:TYPE`, e.g. random:llama-1b:bf16.
    #[command(flatten)]
    pub engine: EngineFlags,
    /// Batch sizes of decoding
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    pub batches: Vec<usize>,
    /// Prompt lengths
    #[arg(long, value_delimiter = ',', default_value = "512,2048")]
    pub prompts: Vec<usize>,
    /// Context of decoding sequences
    #[arg(long, default_value_t = 512)]
    pub context: usize,
    /// Decode steps of one repetition
    #[arg(long, default_value_t = 32)]
    pub steps: usize,
    /// Context lengths at which attention is measured alone
    #[arg(long, value_delimiter = ',', default_value = "1024,8192,32768")]
    pub attention: Vec<usize>,
    /// Repetitions after one that warms up
    #[arg(long, default_value_t = 3)]
    pub repetitions: usize,
}

/// What to compare.
#[derive(Debug, Clone, Args)]
pub struct QualityFlags {
    /// The engine.
    #[command(flatten)]
    pub engine: EngineFlags,
    /// File with one item a line: {"id", "prefix", "documents", "suffix", "max_tokens", "stop_token_ids"}, as token ids
    #[arg(long)]
    pub items: PathBuf,
    /// Methods to measure, all of them unless named
    #[arg(long, value_delimiter = ',')]
    pub methods: Vec<String>,
}

/// What to encode.
#[derive(Debug, Clone, Args)]
pub struct QualityCodecFlags {
    /// The engine.
    #[command(flatten)]
    pub engine: EngineFlags,
    /// Items as of `quality`
    #[arg(long)]
    pub items: PathBuf,
    /// Items that the tables of other codecs are made from
    #[arg(long)]
    pub fit_items: PathBuf,
    /// The model's codec profile
    #[arg(long, env = "KVASIR_CODEC_PROFILE")]
    pub codec_profile: PathBuf,
    /// Tokens of a chunk
    #[arg(long, default_value_t = 256)]
    pub chunk_tokens: usize,
    /// Methods to measure, all of them unless named
    #[arg(long, value_delimiter = ',')]
    pub methods: Vec<String>,
}

/// What profile to make.
#[derive(Debug, Clone, Args)]
pub struct CodecProfileFlags {
    /// The engine.
    #[command(flatten)]
    pub engine: EngineFlags,
    /// Texts: items as of `quality`, at least 8; every eighth is kept apart to measure the levels on
    #[arg(long)]
    pub items: PathBuf,
    /// File to write
    #[arg(long)]
    pub out: PathBuf,
    /// Layers that the dense levels rotate together
    #[arg(long, default_value_t = 3)]
    pub layers: usize,
    /// Texts on which the weight of each layer is measured; 0 weighs all alike
    #[arg(long, default_value_t = 6)]
    pub sensitivity_items: usize,
    /// Lossy levels, the most exact first, each NAME:fast|dense:STEP[:BIT_PRICE]
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "fast-near:fast:0.25,fast:fast:0.5,near:dense:0.16,dense:dense:0.36,densest:dense:0.5"
    )]
    pub levels: Vec<LevelFlag>,
}

/// What to encode for how long.
#[derive(Debug, Clone, Args)]
pub struct BenchCodecFlags {
    /// The engine.
    #[command(flatten)]
    pub engine: EngineFlags,
    /// Texts: items as of `quality`
    #[arg(long)]
    pub items: PathBuf,
    /// The model's codec profile
    #[arg(long, env = "KVASIR_CODEC_PROFILE")]
    pub codec_profile: PathBuf,
    /// Tokens of a chunk
    #[arg(long, value_delimiter = ',', default_value = "32,256")]
    pub chunk_tokens: Vec<usize>,
    /// Repetitions, of which the best counts
    #[arg(long, default_value_t = 5)]
    pub repetitions: usize,
}

/// One for each eight processors: a thread moves some GB/s, and the rest computes.
fn default_transfer_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().div_ceil(8))
}

fn bytes_or_none(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { bytes(text) }
}

/// `512`, `64KiB`, `1.5GiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];
    let (number, unit) = units
        .iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number, *unit)))
        .unwrap_or((text, 1));
    match number.trim().parse::<f64>() {
        Ok(value) if value >= 1.0 && value * (unit as f64) < 1e18 => Ok((value * unit as f64) as u64),
        _ => Err("use a number with B, KiB, MiB or GiB, e.g. 512MiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("1.5KiB"), Ok(1536));
        assert_eq!(bytes("77"), Ok(77));
        assert!(bytes("0").is_err() && bytes_or_none("0") == Ok(0) && bytes_or_none("1KiB") == Ok(1024));
        assert!(bytes("-1").is_err() && bytes("NaNGiB").is_err() && bytes("1e300GiB").is_err() && bytes("").is_err());
    }
}
