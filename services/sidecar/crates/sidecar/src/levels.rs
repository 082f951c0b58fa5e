//! Which tokens of a pull travel at which level of the codec.

use std::ops::Range;

use kvasir_codec::{LEVEL_LOSSLESS, LEVEL_RAW, ProfileId};

use crate::proto::transfer::TokenLevel;

/// Spans of a request, at most.
pub const LEVEL_SPANS_MAX: usize = 64;

/// The levels of a token range, and the profile behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// One past the last token of each span, and its level.
    spans: Vec<(u32, u8)>,
    profile: ProfileId,
    /// Layers that each level codes together, from level 0 on.
    layers_each: Vec<u32>,
}

impl Levels {
    /// Everything as it is.
    pub fn raw() -> Self {
        Self {
            spans: Vec::new(),
            profile: ProfileId::default(),
            layers_each: Vec::new(),
        }
    }

    /// Levels of a profile whose levels code so many layers together.
    pub(crate) fn of_profile(spans: Vec<(u32, u8)>, profile: ProfileId, layers_each: Vec<u32>) -> Self {
        Self {
            spans,
            profile,
            layers_each,
        }
    }

    /// Whose tables encode; zero where all is raw.
    pub fn profile(&self) -> ProfileId {
        self.profile
    }

    /// The one level of some tokens; None when they have several.
    pub fn of(&self, tokens: &Range<u32>) -> Option<u8> {
        let Some((end, level)) = self.spans.iter().find(|(end, _)| tokens.start < *end) else {
            return Some(LEVEL_RAW);
        };
        (tokens.end <= *end).then_some(*level)
    }

    /// Whether a frame at `level` may stand for tokens that were asked at `asked`: KV that no lossy level can encode comes lossless.
    pub fn allows(asked: u8, level: u8) -> bool {
        level == asked || asked > LEVEL_LOSSLESS && level == LEVEL_LOSSLESS
    }

    /// Layers that frames of a level consist of: they begin at a multiple, and end at one or with the last layer.
    pub fn layers_each(&self, level: u8) -> u32 {
        self.layers_each.get(usize::from(level)).copied().unwrap_or(1)
    }

    /// Levels that occur, in their order.
    pub fn used(&self) -> Vec<u8> {
        let mut used: Vec<u8> = self.spans.iter().map(|(_, level)| *level).collect();
        used.sort_unstable();
        used.dedup();
        if used.is_empty() { vec![LEVEL_RAW] } else { used }
    }
}

/// The spans of a request for `tokens`, which are cut into pieces of `piece_size`; none where all is raw.
///
/// # Errors
/// What is wrong with them.
pub fn spans_from_wire(wire: &[TokenLevel], tokens: &Range<u32>, piece_size: u32) -> Result<Vec<(u32, u8)>, String> {
    if wire.len() > LEVEL_SPANS_MAX {
        let count = wire.len();
        return Err(format!("has {count} spans; use at most {LEVEL_SPANS_MAX}"));
    }
    let mut spans: Vec<(u32, u8)> = Vec::with_capacity(wire.len());
    let mut begin = tokens.start;
    for TokenLevel { token_end, level } in wire {
        let level = u8::try_from(*level).map_err(|_| format!("names level {level}; there are at most 256"))?;
        let is_cut = token_end.is_multiple_of(piece_size) || *token_end == tokens.end;
        if *token_end <= begin || *token_end > tokens.end || !is_cut {
            return Err(format!(
                "has a span {begin}..{token_end} within {tokens:?}; spans follow each other and end on blocks of {piece_size}"
            ));
        }
        begin = *token_end;
        // Neighbours of one level are one span, which frames may cross.
        match spans.last_mut() {
            Some((end, last)) if *last == level => *end = *token_end,
            _ => spans.push((*token_end, level)),
        }
    }
    if !spans.is_empty() && begin != tokens.end {
        return Err(format!(
            "ends at token {begin} of {tokens:?}; name levels for all of them or for none"
        ));
    }
    if spans.iter().all(|(_, level)| *level == LEVEL_RAW) {
        spans.clear();
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(spans: &[(u32, u32)]) -> Vec<TokenLevel> {
        let one = |(token_end, level): &(u32, u32)| TokenLevel {
            token_end: *token_end,
            level: *level,
        };
        spans.iter().map(one).collect()
    }

    #[test]
    fn each_token_has_one_level_and_none_named_means_raw() {
        let spans = spans_from_wire(&wire(&[(64, 1), (100, 3)]), &(32..100), 16).unwrap();
        let levels = Levels::of_profile(spans, ProfileId([1; 16]), vec![1, 1, 1, 3]);
        assert_eq!((levels.of(&(32..64)), levels.of(&(64..100))), (Some(1), Some(3)));
        assert_eq!(levels.of(&(48..80)), None);
        assert_eq!((levels.layers_each(3), levels.layers_each(9)), (3, 1));
        assert_eq!(levels.used(), [1, 3]);
        assert_eq!(Levels::raw().of(&(0..9)), Some(LEVEL_RAW));
        assert_eq!(spans_from_wire(&wire(&[(16, 0), (32, 0)]), &(0..32), 16), Ok(vec![]));
        let merged = spans_from_wire(&wire(&[(48, 3), (64, 3), (100, 1)]), &(32..100), 16);
        assert_eq!(merged, Ok(vec![(64, 3), (100, 1)]));
        assert!(Levels::allows(3, LEVEL_LOSSLESS) && !Levels::allows(3, 2) && !Levels::allows(LEVEL_LOSSLESS, 0));
    }

    #[test]
    fn spans_that_cannot_be_are_refused_with_what_is_wrong() {
        let refused = |spans: &[(u32, u32)]| spans_from_wire(&wire(spans), &(32..100), 16).unwrap_err();
        assert!(refused(&[(100, 300)]).contains("level 300"));
        assert!(refused(&[(40, 1), (100, 1)]).contains("32..40"));
        assert!(refused(&[(64, 1), (64, 1)]).contains("64..64"));
        assert!(refused(&[(64, 1), (116, 1)]).contains("64..116"));
        assert!(refused(&[(64, 1)]).contains("ends at token 64"));
        let many: Vec<_> = (0..65).map(|i| (48 + 16 * i, 1)).collect();
        assert!(
            spans_from_wire(&wire(&many), &(32..2000), 16)
                .unwrap_err()
                .contains("65 spans")
        );
    }
}
