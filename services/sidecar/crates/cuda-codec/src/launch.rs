//! One launcher for each kernel of the codec, over the memory of one call.

use crate::rotation::{DeviceMatrices, TILE};
use crate::tables::{Kind, LevelTables};
use kvasir_cuda::{Args, Buffer, Device, DeviceError, Launch};

/// Sections of one launch, and the memory between kernels. What a launcher names has to be there: see [`crate::coder`].
pub(crate) struct Run<'a> {
    pub(crate) device: &'a dyn Device,
    pub(crate) level: &'a LevelTables,
    pub(crate) sections: &'a Buffer,
    pub(crate) section_count: usize,
    /// Largest of all sections.
    pub(crate) tokens_max: usize,
    pub(crate) heads_max: usize,
    pub(crate) lossless: bool,
    pub(crate) stride: usize,
    pub(crate) head_size: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dtype: u32,
    pub(crate) counts_each: usize,
    pub(crate) beyond_max: usize,
}

/// Cosines and sines of positions from 0 on.
pub(crate) struct Turns {
    pub(crate) values: Buffer,
    pub(crate) half: usize,
    pub(crate) stride: usize,
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    FromPacked,
    ToPacked,
}

/// Tokens of a tile of exponents, and of columns.
const EXPONENT_TOKENS: usize = 64;
const COLUMN_TOKENS: usize = 32;

impl Run<'_> {
    fn launch(
        &self,
        [file, kernel]: [&'static str; 2],
        grid: [usize; 3],
        threads: u32,
        shared_bytes: usize,
        arguments: Args,
    ) -> Result<(), DeviceError> {
        let launch = Launch {
            file,
            kernel,
            grid: grid.map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX)),
            threads,
            shared_bytes,
        };
        self.device.launch(launch, &arguments.finish())
    }

    fn slots(&self, arguments: Args) -> Args {
        let LevelTables { axes_max, lows_max, .. } = self.level;
        arguments.count(*axes_max).count(*lows_max).count(self.stride)
    }

    /// `rans_encode`: high → words from the end of each slot, where they begin, states.
    pub(crate) fn rans_encode(&self, [high, words, begins, states]: [&Buffer; 4]) -> Result<(), DeviceError> {
        let arguments = Args::new().buffer(self.sections).buffer(&self.level.rans);
        let arguments = arguments.buffer(high).buffer(words).buffer(begins).buffer(states);
        let grid = [self.section_count, 1, 1];
        self.launch(["rans", "rans_encode"], grid, 32, 0, self.slots(arguments))
    }

    /// `rans_decode`: payload → high, and whether each stream is damaged.
    pub(crate) fn rans_decode(&self, [payload, high, is_damaged]: [&Buffer; 3]) -> Result<(), DeviceError> {
        let arguments = Args::new().buffer(self.sections).buffer(&self.level.rans);
        let arguments = arguments.buffer(payload).buffer(high).buffer(is_damaged);
        let grid = [self.section_count, 1, 1];
        self.launch(["rans", "rans_decode"], grid, 32, 0, self.slots(arguments))
    }

    /// `split_exponents`, `exponents_beyond` or `join_exponents`. Buffers: packed, windows, high, counts, exceptions, payload.
    pub(crate) fn exponents(&self, kernel: &'static str, buffers: [Option<&Buffer>; 6]) -> Result<(), DeviceError> {
        let arguments = Args::new().buffer(self.sections);
        let arguments = buffers.into_iter().fold(arguments, Args::optional);
        let arguments = self.slots(arguments).count(self.head_size).u32(self.dtype);
        let arguments = arguments.count(self.counts_each).count(self.beyond_max);
        let (tokens, shared) = match kernel {
            "exponents_beyond" => (4, 0),
            _ => (EXPONENT_TOKENS, self.head_size * (EXPONENT_TOKENS / 4 + 1) * 4),
        };
        let grid = [self.tokens_max.div_ceil(tokens), self.heads_max, self.section_count];
        self.launch(["codec_exponents", kernel], grid, 128, shared, arguments)
    }

    /// `set_exponents`: packed, exceptions.
    pub(crate) fn set_exponents(&self, packed: &Buffer, exceptions: &Buffer, count: usize) -> Result<(), DeviceError> {
        let arguments = Args::new().buffer(self.sections).buffer(exceptions).buffer(packed);
        let arguments = arguments.count(count).count(self.head_size).u32(self.dtype);
        let grid = [count.div_ceil(128), 1, 1];
        self.launch(["codec_exponents", "set_exponents"], grid, 128, 0, arguments)
    }

    /// `first_tokens`: packed → elements of the first token of each head.
    pub(crate) fn first_tokens(&self, packed: &Buffer, first: &Buffer) -> Result<(), DeviceError> {
        let arguments = Args::new().buffer(self.sections).buffer(packed).buffer(first);
        let arguments = arguments.count(self.head_size).u32(self.dtype);
        let grid = [self.heads_max, self.section_count, 1];
        self.launch(["codec_columns", "first_tokens"], grid, 128, 0, arguments)
    }

    /// `columns_from_packed` or `packed_from_columns`. Buffers: packed, columns, and first tokens or the marks of what is not finite.
    pub(crate) fn columns(
        &self,
        way: Way,
        turns: &Turns,
        [packed, columns, other]: [&Buffer; 3],
    ) -> Result<(), DeviceError> {
        let Kind::Lossy(lossy) = &self.level.kind else {
            return Ok(());
        };
        let [first, marks] = match way {
            Way::FromPacked => [None, Some(other)],
            Way::ToPacked => [Some(other), None],
        };
        let arguments = Args::new().buffer(self.sections).buffer(packed).buffer(&turns.values);
        let arguments = arguments
            .buffer(&lossy.centres)
            .optional(first)
            .buffer(columns)
            .optional(marks);
        let arguments = self.slots(arguments).count(self.head_size).count(self.kv_heads);
        let arguments = arguments.count(turns.half).count(turns.stride).u32(self.dtype);
        let kernel = match way {
            Way::FromPacked => "columns_from_packed",
            Way::ToPacked => "packed_from_columns",
        };
        let grid = [
            self.tokens_max.div_ceil(COLUMN_TOKENS),
            self.heads_max,
            self.section_count,
        ];
        let shared = self.head_size * (COLUMN_TOKENS + 1) * 4;
        self.launch(["codec_columns", kernel], grid, 128, shared, arguments)
    }

    /// `symbols_from_columns`, `symbols_beyond` or `symbols_to_columns`. Buffers: columns, high, low, counts, exceptions, payload.
    pub(crate) fn symbols(&self, kernel: &'static str, buffers: [Option<&Buffer>; 6]) -> Result<(), DeviceError> {
        let Kind::Lossy(lossy) = &self.level.kind else {
            return Ok(());
        };
        let arguments = Args::new().buffer(self.sections).buffer(&lossy.axes);
        let arguments = self.slots(buffers.into_iter().fold(arguments, Args::optional));
        let arguments = arguments.count(self.counts_each).count(self.beyond_max);
        let grid = [self.level.axes_max.div_ceil(4), self.section_count, 1];
        self.launch(["codec_symbols", kernel], grid, 128, 0, arguments)
    }

    /// `set_columns`: columns, exceptions.
    pub(crate) fn set_columns(&self, columns: &Buffer, exceptions: &Buffer, count: usize) -> Result<(), DeviceError> {
        let Kind::Lossy(lossy) = &self.level.kind else {
            return Ok(());
        };
        let arguments = Args::new().buffer(self.sections).buffer(&lossy.axes);
        let arguments = self.slots(arguments.buffer(exceptions).buffer(columns)).count(count);
        let grid = [count.div_ceil(128), 1, 1];
        self.launch(["codec_symbols", "set_columns"], grid, 128, 0, arguments)
    }

    /// `round_columns`, then `multiply_columns`: columns → out, through content and scales. Buffers in that order.
    pub(crate) fn rotate(&self, way: Way, [columns, out, content, scales]: [&Buffer; 4]) -> Result<(), DeviceError> {
        let Kind::Lossy(lossy) = &self.level.kind else {
            return Ok(());
        };
        let Some(rotation) = &lossy.rotation else {
            return Ok(());
        };
        // Centres lie before the rotation, and come back after it.
        let (own, [centres, factors, offsets]): (&DeviceMatrices, _) = match way {
            Way::FromPacked => (&rotation.forward, [Some(&lossy.centres), Some(&rotation.factors), None]),
            Way::ToPacked => (&rotation.back, [None, None, Some(&lossy.centres)]),
        };
        let arguments = Args::new()
            .buffer(self.sections)
            .buffer(&own.matrices)
            .buffer(&own.blocks);
        let arguments = arguments
            .buffer(&own.terms)
            .buffer(&own.weights)
            .buffer(&own.scales)
            .buffer(&own.starts);
        let arguments = arguments.optional(centres).optional(factors).optional(offsets);
        let arguments = arguments.buffer(columns).buffer(content).buffer(scales).buffer(out);
        let arguments = self.slots(arguments).count(own.content_bytes).count(own.scales_each);
        let grid = [self.stride.div_ceil(32), own.blocks_max.div_ceil(4), self.section_count];
        let file = "codec_rotation";
        self.launch([file, "round_columns"], grid, 128, 0, arguments.clone())?;
        let grid = [
            self.stride.div_ceil(TILE),
            own.rows_max.div_ceil(TILE),
            self.section_count,
        ];
        self.launch([file, "multiply_columns"], grid, 128, 0, arguments)
    }

    /// `sum_counts`: counts → how many come before, and how many there are in each section.
    pub(crate) fn sum_counts(&self, counts: &Buffer, totals: &Buffer) -> Result<(), DeviceError> {
        let arguments = Args::new().buffer(self.sections).buffer(counts).buffer(totals);
        let arguments = arguments.count(self.counts_each).u32(self.lossless.into());
        let grid = [self.section_count, 1, 1];
        self.launch(["codec_payload", "sum_counts"], grid, 256, 0, arguments)
    }

    /// `place_sections`, then `write_payload`. Buffers: where words begin, states, words, exceptions, their counts, low planes, packed KV, where
    /// sections begin, payload.
    pub(crate) fn payload(&self, buffers: [&Buffer; 9]) -> Result<(), DeviceError> {
        let [word_begins, states, words, beyond, totals, low, packed, begins, payload] = buffers;
        let planes = match &self.level.kind {
            Kind::Lossy(lossy) => Some(&lossy.planes),
            Kind::Lossless { .. } => None,
        };
        let arguments = Args::new()
            .buffer(self.sections)
            .buffer(word_begins)
            .buffer(states)
            .buffer(words);
        let arguments = arguments
            .buffer(beyond)
            .buffer(totals)
            .optional(planes)
            .buffer(low)
            .buffer(packed);
        let arguments = arguments.buffer(begins).buffer(payload).u64(payload.byte_len() as u64);
        let arguments = self.slots(arguments).count(self.section_count).count(self.beyond_max);
        let arguments = arguments
            .count(self.head_size)
            .u32(self.dtype)
            .u32(self.lossless.into());
        let file = "codec_payload";
        self.launch([file, "place_sections"], [1, 1, 1], 256, 0, arguments.clone())?;
        let words = payload.byte_len() / 4;
        self.launch([file, "write_payload"], [words.div_ceil(256), 1, 1], 256, 0, arguments)
    }
}
