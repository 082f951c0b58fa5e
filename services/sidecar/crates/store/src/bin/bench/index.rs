//! What 10 M blocks cost.

use std::time::Instant;

use kvasir_store::{Index, Location};

use crate::blocks;

pub fn measure(count: u64) -> Result<serde_json::Value, Box<dyn std::error::Error>> {
    let before = resident_bytes()?;
    let mut index = Index::default();
    let (started, mut longest) = (Instant::now(), 0);
    for number in 0..count {
        let location = Location {
            segment: 1 + (number >> 10) as u32,
            offset: (number & 1023) << 21,
            value_bytes: 1 << 20,
            approximate: false,
        };
        let one = Instant::now();
        index.insert(blocks::key(number), location);
        longest = longest.max(one.elapsed().as_nanos());
    }
    let insert_nanos = started.elapsed().as_nanos() as f64 / count as f64;
    let resident = resident_bytes()?.saturating_sub(before);
    let started = Instant::now();
    let found = (0..count)
        .filter(|number| index.get(blocks::key(number * 7919 % count)).is_some())
        .count() as u64;
    let get_nanos = started.elapsed().as_nanos() as f64 / count as f64;
    let started = Instant::now();
    let missed = (count..count + 1_000_000)
        .filter(|number| index.get(blocks::key(*number)).is_none())
        .count();
    let miss_nanos = started.elapsed().as_nanos() as f64 / 1e6;
    if found != count || missed != 1_000_000 {
        return Err(format!("{found} of {count} keys were found, {missed} of 1000000 others were not").into());
    }
    Ok(serde_json::json!({
        "blocks": count, "table_bytes": index.memory_bytes(), "resident_bytes": resident,
        "bytes_per_block": index.memory_bytes() as f64 / count as f64,
        "insert_nanos": insert_nanos, "longest_insert_nanos": longest as u64, "get_nanos": get_nanos, "miss_nanos": miss_nanos,
    }))
}

fn resident_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = status.split(' ').nth(1).ok_or("no resident size")?.parse()?;
    Ok(pages * 4096)
}
