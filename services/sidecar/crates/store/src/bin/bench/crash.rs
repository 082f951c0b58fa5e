//! A process that writes, removes and compacts is killed at a moment nobody chose; then another opens what is left.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use clap::Args;
use kvasir_store::{Accuracy, Store, StoreError, StoreOptions};
use xxhash_rust::xxh3::xxh3_64;

use crate::blocks;

type Failure = Box<dyn std::error::Error>;

/// Writes under way at once, so that groups form.
const IN_FLIGHT: usize = 8;

#[derive(Args)]
pub struct Flags {
    /// Directory for the store
    #[arg(long)]
    directory: PathBuf,
    /// Kills
    #[arg(long, default_value_t = 200)]
    kills: u64,
    /// Longest time that a process lives, in milliseconds
    #[arg(long, default_value_t = 300)]
    life_max_ms: u64,
    /// Moments of the kills follow from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn options(directory: &Path) -> StoreOptions {
    StoreOptions {
        memory_bytes: 64 << 20,
        directory: Some(directory.to_owned()),
        disk_bytes: 96 << 20,
        segment_bytes: 4 << 20,
        ..StoreOptions::default()
    }
}

/// Writes blocks `first`, `first + 1`, … and says `+N` when N is durable, `?N` before a removal of N is asked for, `-N` when it is durable.
pub fn child(directory: &Path, first: u64) -> Result<serde_json::Value, Failure> {
    let mut present = Vec::new();
    let store = Store::open(&options(directory), &mut |_| {})?;
    let (told, outcomes) = channel();
    let mut bytes = Vec::new();
    let mut under_way = 0;
    let mut out = std::io::stdout().lock();
    for number in first.. {
        bytes.resize(blocks::length(number), 0);
        blocks::fill(number, &mut bytes);
        blocks::insert(&store, number, &bytes)?;
        let told_put = told.clone();
        store.persist(blocks::key(number), move |outcome| {
            let _ = told_put.send((number, outcome));
        });
        under_way += 1;
        while under_way >= IN_FLIGHT {
            let (number, outcome) = outcomes.recv()?;
            under_way -= 1;
            store.drop_from_memory(blocks::key(number));
            match outcome {
                Ok(()) => {
                    writeln!(out, "+{number}")?;
                    present.push(number);
                }
                // The oldest ones go, and most of those that follow, so that segments are left with a few.
                Err(StoreError::DiskFull { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if present.len() > 60 {
            let gone: Vec<u64> = present
                .iter()
                .copied()
                .filter(|number| !xxh3_64(&number.to_be_bytes()).is_multiple_of(5))
                .collect();
            present.clear();
            gone.iter().try_for_each(|number| writeln!(out, "?{number}"))?;
            out.flush()?;
            let (removed, done) = channel();
            let keys: Vec<_> = gone.iter().map(|number| blocks::key(*number)).collect();
            store.remove(&keys, move |outcome| {
                let _ = removed.send(outcome);
            });
            done.recv()??;
            gone.iter().try_for_each(|number| writeln!(out, "-{number}"))?;
        }
        out.flush()?;
    }
    Ok(serde_json::Value::Null)
}

/// # Errors
/// The first block that is missing, wrong, or back although its removal was answered.
pub fn parent(flags: &Flags) -> Result<serde_json::Value, Failure> {
    let mut acknowledged = BTreeSet::<u64>::new();
    let (mut maybe, mut gone, mut next) = (BTreeSet::<u64>::new(), BTreeSet::<u64>::new(), 0);
    let (mut verified, mut unacknowledged) = (0u64, 0u64);
    for kill in 0..flags.kills {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("crash-child")
            .arg(&flags.directory)
            .arg(next.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("the child has no output")?;
        let reader =
            std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect::<Vec<_>>());
        let life = xxh3_64(&[flags.seed.to_le_bytes(), kill.to_le_bytes()].concat()) % (flags.life_max_ms * 1000);
        std::thread::sleep(Duration::from_micros(life));
        child.kill()?;
        let status = child.wait()?;
        if status.code().is_some() {
            return Err(format!("the process ended by itself before kill {kill}: {status}").into());
        }
        for line in reader.join().map_err(|_| "the reader failed")? {
            // The last line may have been cut.
            let Some((sign, number)) = line
                .split_at_checked(1)
                .and_then(|(sign, number)| Some((sign, number.parse::<u64>().ok()?)))
            else {
                continue;
            };
            match sign {
                "+" => {
                    acknowledged.insert(number);
                }
                "?" => {
                    acknowledged.remove(&number);
                    maybe.insert(number);
                }
                _ => {
                    maybe.remove(&number);
                    gone.insert(number);
                }
            }
            next = next.max(number + 1);
        }
        // Numbers that were under way may be there too; none of them is used again.
        next += 2 * IN_FLIGHT as u64;

        let mut there = BTreeSet::new();
        let store = Store::open(&options(&flags.directory), &mut |recovered| {
            there.insert(recovered.key);
        })?;
        for number in 0..next {
            let Some(object) = store.get(blocks::key(number), Accuracy::Exact, 0, false)? else {
                if acknowledged.contains(&number) {
                    return Err(format!("after kill {kill}: block {number} was acknowledged and is missing").into());
                }
                continue;
            };
            if !blocks::is_right(number, &object) {
                return Err(format!("after kill {kill}: block {number} has wrong bytes").into());
            }
            if gone.contains(&number) {
                return Err(
                    format!("after kill {kill}: block {number} is back although its removal was answered").into(),
                );
            }
            there.remove(&object.key);
            verified += 1;
            unacknowledged += u64::from(!acknowledged.contains(&number));
        }
        if !there.is_empty() || store.stats().damaged > 0 {
            return Err(format!(
                "after kill {kill}: {} blocks were announced and could not be read",
                there.len()
            )
            .into());
        }
    }
    Ok(serde_json::json!({
        "kills": flags.kills, "acknowledged": acknowledged.len() + gone.len() + maybe.len(), "removals": gone.len(),
        "reads_verified": verified, "whole_but_unacknowledged": unacknowledged, "segments_emptied": emptied_segments(&flags.directory)?,
    }))
}

/// Ids that no file has any more: compaction took them.
fn emptied_segments(directory: &Path) -> Result<u64, Failure> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "segment") {
            ids.extend(path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok()));
        }
    }
    Ok(ids.iter().max().copied().unwrap_or(0) - ids.len() as u64)
}
