//! Matrices of 8 bits as kernels/codec_rotation.cu reads them: rows whole, each term padded to what one instruction of the tensor cores takes.

use kvasir_cuda::{Args, Buffer, Device, DeviceError};
use kvasir_kernels::Matrix8;

/// Numbers that the kernel multiplies in one step, and rows and tokens of its tiles.
const STEP: usize = 32;
pub(crate) const TILE: usize = 64;

/// One matrix for each group of layers, in one direction.
pub(crate) struct DeviceMatrices {
    pub(crate) matrices: Buffer,
    pub(crate) blocks: Buffer,
    pub(crate) terms: Buffer,
    pub(crate) weights: Buffer,
    pub(crate) scales: Buffer,
    pub(crate) starts: Buffer,
    /// Largest of all groups.
    pub(crate) content_bytes: usize,
    pub(crate) scales_each: usize,
    pub(crate) blocks_max: usize,
    pub(crate) rows_max: usize,
}

impl DeviceMatrices {
    /// Uploads the matrices of the groups, whose channels begin at `channel_begins` in what is known of all groups' channels.
    pub(crate) fn new(device: &dyn Device, groups: &[(&Matrix8, usize)]) -> Result<Self, DeviceError> {
        let (mut matrices, mut blocks, mut terms) = (Vec::new(), Vec::new(), Vec::new());
        let (mut weights, mut scales, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut content_max, mut scales_each, mut blocks_max, mut rows_max) = (0, 0, 0, 0);
        let (mut term_begin, mut block_begin) = (0, 0);
        for (matrix, channel_begin) in groups {
            let stored: Vec<_> = matrix.stored_blocks().collect();
            let contents = offsets(stored.iter().map(|range| range.len().next_multiple_of(STEP)));
            let content_bytes = contents[stored.len()];
            let mut block_count = 0;
            for (place, range) in stored.iter().enumerate() {
                let is_rest = matrix.is_fine() && place == 1;
                if is_rest {
                    continue;
                }
                let rest = usize::from(matrix.is_fine() && place == 0);
                let rest_content = if rest > 0 { contents[1] } else { 0 };
                let fields = [range.start, range.len(), contents[place], place, rest_content, rest];
                blocks.extend(fields.into_iter().fold(Args::new(), Args::count).finish());
                block_count += 1;
            }
            let of_terms: Vec<usize> = matrix.term_blocks().collect();
            let places = offsets(of_terms.iter().map(|block| stored[*block].len().next_multiple_of(STEP)));
            for (block, place) in of_terms.iter().zip(&places) {
                let bytes = stored[*block].len().next_multiple_of(STEP);
                let fields = [*block, contents[*block], *place, bytes];
                terms.extend(fields.into_iter().fold(Args::new(), Args::count).finish());
            }
            let (rows, row_bytes) = (matrix.rows(), places[of_terms.len()]);
            let tile_rows = rows.next_multiple_of(TILE);
            matrices.extend(
                Args::new()
                    .u64(weights.len() as u64)
                    .count(row_bytes)
                    .count(rows)
                    .count(term_begin)
                    .count(of_terms.len())
                    .count(block_begin)
                    .count(block_count)
                    .count(scales.len() / 4)
                    .count(*channel_begin)
                    .finish(),
            );
            let weights_begin = weights.len();
            weights.resize(weights_begin + tile_rows * row_bytes, 0);
            for (term, place) in places[..of_terms.len()].iter().enumerate() {
                for row in 0..tile_rows {
                    if row >= rows {
                        scales.extend([0; 4]);
                        starts.extend([0; 4]);
                        continue;
                    }
                    let own = matrix.row_term(row, term);
                    weights[weights_begin + row * row_bytes + place..][..own.weights.len()]
                        .copy_from_slice(&own.weights);
                    scales.extend(own.scale.to_ne_bytes());
                    starts.extend(own.start.to_ne_bytes());
                }
            }
            term_begin += of_terms.len();
            block_begin += block_count;
            content_max = content_max.max(content_bytes);
            scales_each = scales_each.max(stored.len());
            blocks_max = blocks_max.max(block_count);
            rows_max = rows_max.max(rows);
        }
        Ok(Self {
            matrices: upload(device, &matrices)?,
            blocks: upload(device, &blocks)?,
            terms: upload(device, &terms)?,
            weights: upload(device, &weights)?,
            scales: upload(device, &scales)?,
            starts: upload(device, &starts)?,
            content_bytes: content_max,
            scales_each,
            blocks_max,
            rows_max,
        })
    }
}

/// Where each part begins when they lie behind each other, and where the last one ends.
fn offsets(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut all = vec![0];
    all.extend(lengths.scan(0, |end, length| {
        *end += length;
        Some(*end)
    }));
    all
}

/// New memory that holds these bytes.
pub(crate) fn upload(device: &dyn Device, bytes: &[u8]) -> Result<Buffer, DeviceError> {
    let buffer = device.allocate(bytes.len().max(4))?;
    device.write(&buffer, 0, bytes)?;
    Ok(buffer)
}
