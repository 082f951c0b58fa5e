//! Which part of a model's KV each shard holds, and who has to send what to whom when two divisions differ.
//!
//! A shard's part is a box of layers and KV heads, for all tokens. The boxes of both sides are intersected; each intersection is one route: one
//! source shard sends these layers and heads to one sink shard, for whatever tokens are asked. Tokens are cut by block size, within a route
//! (see [`crate::frames`]). The scheme of vLLM and SGLang for unlike tensor-parallel sizes is the case of evenly divided heads.
//!
//! This lives where bytes move and not where placement is decided: given two layouts nothing is left to choose.

use std::ops::Range;

/// Layers and KV heads, counted in the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Layers.
    pub layers: Range<u32>,
    /// KV heads.
    pub heads: Range<u32>,
}

/// What one source shard sends to one sink shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Index of the source shard.
    pub source: usize,
    /// Index of the sink shard.
    pub sink: usize,
    /// What goes from the one to the other.
    pub part: Part,
}

/// The parts of evenly divided heads, in the order of the shards. `shard_count` divides `kv_head_count`.
pub fn head_parts(layer_count: u32, kv_head_count: u32, shard_count: u32) -> Vec<Part> {
    let each = kv_head_count / shard_count;
    (0..shard_count)
        .map(|shard| Part {
            layers: 0..layer_count,
            heads: shard * each..(shard + 1) * each,
        })
        .collect()
}

/// Routes by which every sink gets each element of its part once, in the order of the sinks and then of the sources. What several sources
/// hold comes from the first of them.
///
/// # Errors
/// A part that a sink needs and no source holds.
pub fn routes(sources: &[Part], sinks: &[Part]) -> Result<Vec<Route>, Part> {
    let mut routes = Vec::new();
    for (sink, needed) in sinks.iter().enumerate() {
        let mut missing = vec![needed.clone()];
        for (source, held) in sources.iter().enumerate() {
            let mut still = Vec::new();
            for part in missing {
                match part.intersection(held) {
                    None => still.push(part),
                    Some(common) => {
                        still.extend(part.without(&common));
                        routes.push(Route {
                            source,
                            sink,
                            part: common,
                        });
                    }
                }
            }
            missing = still;
        }
        if let Some(part) = missing.pop() {
            return Err(part);
        }
    }
    Ok(routes)
}

impl Part {
    fn intersection(&self, other: &Self) -> Option<Self> {
        let both = |a: &Range<u32>, b: &Range<u32>| a.start.max(b.start)..a.end.min(b.end);
        let common = Self {
            layers: both(&self.layers, &other.layers),
            heads: both(&self.heads, &other.heads),
        };
        (!common.is_empty()).then_some(common)
    }

    /// What is left of it when a part within is taken out: at most four boxes.
    fn without(&self, within: &Self) -> impl Iterator<Item = Self> {
        let of = |layers: Range<u32>, heads: Range<u32>| Self { layers, heads };
        [
            of(self.layers.start..within.layers.start, self.heads.clone()),
            of(within.layers.end..self.layers.end, self.heads.clone()),
            of(within.layers.clone(), self.heads.start..within.heads.start),
            of(within.layers.clone(), within.heads.end..self.heads.end),
        ]
        .into_iter()
        .filter(|part| !part.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.layers.is_empty() || self.heads.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// For each (sink, layer, head) the sources it comes from.
    fn arrivals(routes: &[Route], sinks: usize, layers: u32, heads: u32) -> Vec<Vec<usize>> {
        let mut arrivals = vec![Vec::new(); sinks * (layers * heads) as usize];
        for route in routes {
            for layer in route.part.layers.clone() {
                for head in route.part.heads.clone() {
                    let cell = (route.sink as u32 * layers + layer) * heads + head;
                    arrivals[cell as usize].push(route.source);
                }
            }
        }
        arrivals
    }

    fn holds(part: &Part, layer: u32, head: u32) -> bool {
        part.layers.contains(&layer) && part.heads.contains(&head)
    }

    #[test]
    fn two_shards_feed_four_and_four_feed_two() {
        let of = |shards| head_parts(3, 8, shards);
        let pairs = |routes: Vec<Route>| -> Vec<(usize, usize, Range<u32>)> {
            let one = |route: Route| (route.source, route.sink, route.part.heads);
            routes.into_iter().map(one).collect()
        };
        let two_to_four = pairs(routes(&of(2), &of(4)).unwrap());
        assert_eq!(two_to_four, [(0, 0, 0..2), (0, 1, 2..4), (1, 2, 4..6), (1, 3, 6..8)]);
        let four_to_two = pairs(routes(&of(4), &of(2)).unwrap());
        assert_eq!(four_to_two, [(0, 0, 0..2), (1, 0, 2..4), (2, 1, 4..6), (3, 1, 6..8)]);
    }

    #[test]
    fn a_part_that_nobody_holds_is_named() {
        let mut sources = head_parts(2, 4, 2);
        sources.truncate(1);
        let missing = Part {
            layers: 0..2,
            heads: 2..4,
        };
        assert_eq!(routes(&sources, &head_parts(2, 4, 1)), Err(missing));
    }

    fn part() -> impl Strategy<Value = Part> {
        (0u32..4, 1u32..=4, 0u32..6, 1u32..=6).prop_map(|(layer, layers, head, heads)| Part {
            layers: layer..(layer + layers).min(4),
            heads: head..(head + heads).min(6),
        })
    }

    proptest! {
        #[test]
        fn each_element_of_each_sink_comes_once_from_a_source_that_has_it(
            mut sources in prop::collection::vec(part(), 0..5), sinks in prop::collection::vec(part(), 1..4), whole in any::<bool>(),
        ) {
            if whole {
                sources.push(Part { layers: 0..4, heads: 0..6 });
            }
            let covered = |layer, head| sources.iter().any(|source| holds(source, layer, head));
            match routes(&sources, &sinks) {
                Err(part) => prop_assert!(!whole && !covered(part.layers.start, part.heads.start)),
                Ok(routes) => {
                    let arrivals = arrivals(&routes, sinks.len(), 4, 6);
                    for (cell, from) in arrivals.iter().enumerate() {
                        let (sink, layer, head) = (cell / 24, (cell / 6 % 4) as u32, (cell % 6) as u32);
                        prop_assert_eq!(from.len(), usize::from(holds(&sinks[sink], layer, head)));
                        prop_assert!(from.iter().all(|source| holds(&sources[*source], layer, head)));
                    }
                }
            }
        }
    }
}
