//! Elements of several blocks as one packed range, as chunks of the codec hold them, and back.
//!
//! ```text
//! pieces  [piece]  [layer][K, V][kv_head]  [token of the piece][head_size]
//! packed           [layer][K, V][kv_head]  [token][head_size]
//! ```

/// Joins pieces, whose tokens are counted in `counts`; a token of a head takes `run` bytes. `pieces` holds whole pieces.
pub fn joined(pieces: &[u8], counts: &[usize], run: usize) -> Vec<u8> {
    let tokens: usize = counts.iter().sum();
    if counts.len() < 2 {
        return pieces.to_vec();
    }
    let mut packed = vec![0; pieces.len()];
    moves(counts, pieces.len() / (tokens * run).max(1), run, |piece, whole| {
        packed[whole].copy_from_slice(&pieces[piece]);
    });
    packed
}

/// The reverse of [`joined`].
pub fn split(packed: &[u8], counts: &[usize], run: usize) -> Vec<u8> {
    let tokens: usize = counts.iter().sum();
    if counts.len() < 2 {
        return packed.to_vec();
    }
    let mut pieces = vec![0; packed.len()];
    moves(counts, packed.len() / (tokens * run).max(1), run, |piece, whole| {
        pieces[piece].copy_from_slice(&packed[whole]);
    });
    pieces
}

/// Tells for each piece and head where its tokens lie on either side.
fn moves(
    counts: &[usize],
    heads: usize,
    run: usize,
    mut copy: impl FnMut(std::ops::Range<usize>, std::ops::Range<usize>),
) {
    let tokens: usize = counts.iter().sum();
    let (mut from, mut begin) = (0, 0);
    for count in counts {
        let bytes = count * run;
        for head in 0..heads {
            let to = (head * tokens + begin) * run;
            copy(from..from + bytes, to..to + bytes);
            from += bytes;
        }
        begin += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_head_lie_together_whatever_the_blocks() {
        // Two heads, pieces of two and one token, one byte each.
        let pieces = [1, 2, 11, 12, 3, 13];
        let packed = [1, 2, 3, 11, 12, 13];
        assert_eq!(joined(&pieces, &[2, 1], 1), packed);
        assert_eq!(split(&packed, &[2, 1], 1), pieces);
        assert_eq!(joined(&pieces, &[3], 1), pieces);
    }
}
