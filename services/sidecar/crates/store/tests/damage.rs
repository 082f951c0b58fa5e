//! Files that were changed, cut off, or written half: never a wrong block, never a panic, and what is whole is found.

mod common;

use std::fs::{metadata, read, read_dir, write};
use std::path::{Path, PathBuf};

use common::{has, open, options, put, remove};
use proptest::prelude::*;

const BLOCKS: u64 = 30;

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

/// A closed store with some blocks and removals in several segments.
fn written(directory: &Path) {
    let store = open(&options(directory)).0;
    for number in 0..BLOCKS {
        put(&store, number).unwrap();
    }
    remove(&store, &[3, 17]).unwrap();
}

#[derive(Debug, Clone)]
enum Damage {
    Flip {
        at: prop::sample::Index,
        with: u8,
    },
    Zero {
        at: prop::sample::Index,
        length: usize,
    },
    Cut {
        at: prop::sample::Index,
    },
    Repeat {
        from: prop::sample::Index,
        to: prop::sample::Index,
    },
}

fn damage() -> impl Strategy<Value = Damage> {
    use any as a;
    prop_oneof![
        (a::<prop::sample::Index>(), 1u8..).prop_map(|(at, with)| Damage::Flip { at, with }),
        (a::<prop::sample::Index>(), 1usize..20_000).prop_map(|(at, length)| Damage::Zero { at, length }),
        a::<prop::sample::Index>().prop_map(|at| Damage::Cut { at }),
        (a::<prop::sample::Index>(), a::<prop::sample::Index>()).prop_map(|(from, to)| Damage::Repeat { from, to }),
    ]
}

fn apply(damage: &Damage, bytes: &mut Vec<u8>) {
    match damage {
        _ if bytes.is_empty() => {}
        Damage::Flip { at, with } => {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        Damage::Zero { at, length } => {
            let at = at.index(bytes.len());
            let end = (at + length).min(bytes.len());
            bytes[at..end].fill(0);
        }
        Damage::Cut { at } => bytes.truncate(at.index(bytes.len())),
        // A page that belongs elsewhere, as a lost write leaves it.
        Damage::Repeat { from, to } => {
            let pages = bytes.len() / 4096;
            if pages > 0 {
                let (from, to) = (from.index(pages) * 4096, to.index(pages) * 4096);
                bytes.copy_within(from..from + 4096, to);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn changed_files_never_give_a_wrong_block(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), damage()), 1..6),
    ) {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path());
        for (which, catalogs, damage) in &changes {
            let files = files(directory.path(), if *catalogs { "catalog" } else { "segment" });
            let path = &files[which.index(files.len())];
            let mut bytes = read(path).unwrap();
            apply(damage, &mut bytes);
            write(path, bytes).unwrap();
        }
        // Twice: what the first opening mended is believed by the second.
        for _ in 0..2 {
            let store = open(&options(directory.path())).0;
            // `has` compares the bytes. Blocks that were removed may come back when the removal was damaged.
            let found = (0..BLOCKS).filter(|number| has(&store, *number)).count() as u64;
            prop_assert!(found <= BLOCKS);
            // The store still works.
            put(&store, 99).unwrap();
            prop_assert!(has(&store, 99));
        }
    }

    #[test]
    fn whatever_a_crash_leaves_behind_the_last_answer_costs_nothing_that_was_answered(
        acknowledged in 1u64..20, tail in proptest::collection::vec(any::<u8>(), 0..30_000), cut in any::<prop::sample::Index>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let options = kvasir_store::StoreOptions { segment_bytes: 4 << 20, ..options(directory.path()) };
        let store = open(&options).0;
        for number in 0..acknowledged {
            put(&store, number).unwrap();
        }
        let [segment] = &files(directory.path(), "segment")[..] else { panic!("one segment") };
        let durable = metadata(segment).unwrap().len() as usize;
        for number in acknowledged..acknowledged + 3 {
            put(&store, number).unwrap();
        }
        drop(store);
        // As if the power went after the answer to the last of `acknowledged`: behind it lies what nobody promised, in part or as junk.
        let mut bytes = read(segment).unwrap();
        bytes.truncate(durable + cut.index(bytes.len() - durable + 1));
        let at = durable + cut.index(bytes.len() - durable + 1);
        for (place, junk) in bytes[at..].iter_mut().zip(&tail) {
            *place = *junk;
        }
        write(segment, bytes).unwrap();
        files(directory.path(), "catalog").iter().for_each(|path| std::fs::remove_file(path).unwrap());
        let store = open(&options).0;
        for number in 0..acknowledged {
            prop_assert!(has(&store, number), "{} was acknowledged", number);
        }
        for number in acknowledged..acknowledged + 3 {
            has(&store, number);
        }
    }
}

#[test]
fn a_damaged_record_costs_itself_only() {
    let directory = tempfile::tempdir().unwrap();
    let options = kvasir_store::StoreOptions {
        segment_bytes: 4 << 20,
        ..options(directory.path())
    };
    let store = open(&options).0;
    let mut ends = Vec::new();
    for number in 0..10 {
        put(&store, number).unwrap();
        ends.push(metadata(&files(directory.path(), "segment")[0]).unwrap().len());
    }
    drop(store);
    // Its header, so that the walk has to find the next one; and no catalog that would tell.
    let segment = &files(directory.path(), "segment")[0];
    let mut bytes = read(segment).unwrap();
    bytes[ends[4] as usize + 20] ^= 1;
    write(segment, bytes).unwrap();
    files(directory.path(), "catalog")
        .iter()
        .for_each(|path| std::fs::remove_file(path).unwrap());
    let store = open(&options).0;
    for number in 0..10 {
        assert_eq!(has(&store, number), number != 5, "{number}");
    }
}

#[test]
fn a_segment_that_was_just_begun_is_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    write(directory.path().join("0000004000.segment"), b"").unwrap();
    write(directory.path().join("0000004001.segment"), vec![0; 9000]).unwrap();
    write(directory.path().join("0000004001.catalog-unfinished"), b"x").unwrap();
    let (store, found) = open(&options(directory.path()));
    assert_eq!(found.len() as u64, BLOCKS - 2);
    assert!(has(&store, 0) && !has(&store, 3));
}

#[test]
fn a_later_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let segment = files(directory.path(), "segment").remove(0);
    let mut bytes = read(&segment).unwrap();
    bytes[4] = 2;
    let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[..24]);
    bytes[24..32].copy_from_slice(&checksum.to_le_bytes());
    write(&segment, &bytes).unwrap();
    let refused = kvasir_store::Store::open(&options(directory.path()), &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(refused.contains("format 2"), "{refused}");
    assert_eq!(read(&segment).unwrap(), bytes);
}
