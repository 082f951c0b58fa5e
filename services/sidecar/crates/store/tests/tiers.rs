//! What goes in comes out, in both tiers, over restarts and compaction, as from a plain map.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::{bytes, has, key, metadata, open, options, put, put_with, remove, wait_until};
use kvasir_store::{Accuracy, Found, Metadata, Store, StoreError, StoreOptions};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn it_does_what_a_set_does(operations in proptest::collection::vec((0u8..8, 0u64..60), 1..160)) {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let (mut store, mut model) = (open(&options).0, BTreeSet::new());
        for (operation, number) in operations {
            match operation {
                0..4 => {
                    put(&store, number).unwrap();
                    model.insert(number);
                }
                4..6 => {
                    remove(&store, &[number, number + 1]).unwrap();
                    model.remove(&number);
                    model.remove(&(number + 1));
                }
                6 => prop_assert_eq!(has(&store, number), model.contains(&number)),
                _ => {
                    drop(store);
                    let (again, found) = open(&options);
                    store = again;
                    let found: BTreeSet<_> = found.iter().map(|recovered| recovered.key).collect();
                    prop_assert_eq!(found, model.iter().map(|number| key(*number)).collect());
                }
            }
        }
        for number in 0..61 {
            prop_assert_eq!(has(&store, number), model.contains(&number), "{}", number);
        }
    }
}

#[test]
fn compaction_gives_space_back_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let store = open(&options).0;
    for number in 0..200 {
        put(&store, number).unwrap();
    }
    let full = store.stats().disk_file_bytes;
    let gone: Vec<u64> = (0..200).filter(|number| number % 4 != 0).collect();
    remove(&store, &gone).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.stats().disk_file_bytes > full / 2 {
        assert!(Instant::now() < deadline, "{:?}", store.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(store.stats().bytes_compacted > 0);
    drop(store);
    let (store, _) = open(&options);
    for number in 0..200 {
        assert_eq!(has(&store, number), number % 4 == 0, "{number}");
    }
}

#[test]
fn a_full_tier_refuses_and_has_room_again_after_a_removal() {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        disk_bytes: 512 << 10,
        ..options(directory.path())
    };
    let store = open(&options).0;
    let refused = (0..1000).find(|number| put(&store, *number).is_err()).unwrap();
    assert!(matches!(put(&store, refused), Err(StoreError::DiskFull { .. })));
    assert!(store.stats().disk_file_bytes <= 512 << 10);
    assert!((0..refused).all(|number| has(&store, number)));
    remove(&store, &(0..refused / 2).collect::<Vec<_>>()).unwrap();
    wait_until(|| put(&store, refused).is_ok());
    assert!(has(&store, refused) && (refused / 2..refused).all(|number| has(&store, number)));
}

#[test]
fn expired_and_approximate_blocks_are_misses() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&options(directory.path())).0;
    let expiring = Metadata {
        expires_at_unix_ms: 1000,
        ..metadata()
    };
    put_with(&store, 1, expiring).unwrap();
    assert!(store.get(key(1), Accuracy::Exact, 999, false).unwrap().is_some());
    assert!(store.get(key(1), Accuracy::Exact, 1000, false).unwrap().is_none());

    let lossy = Metadata {
        accuracy: Accuracy::Approximate,
        ..metadata()
    };
    put_with(&store, 2, lossy).unwrap();
    assert!(store.get(key(2), Accuracy::Exact, 0, false).unwrap().is_none());
    assert_eq!(store.find(key(2), Accuracy::Exact), Found::default());
    assert!(store.get(key(2), Accuracy::Approximate, 0, false).unwrap().is_some());
    // An exact one takes its place, and not the other way round.
    put(&store, 2).unwrap();
    put_with(&store, 2, lossy).unwrap();
    assert!(has(&store, 2));
}

#[test]
fn what_somebody_reads_stays_until_he_is_done() {
    let store = Store::open(
        &StoreOptions {
            memory_bytes: 64 << 10,
            extent_bytes: 4096,
            ..StoreOptions::default()
        },
        &mut |_| {},
    )
    .unwrap();
    let fill = |number: u64| {
        let mut buffer = store.allocate(40 << 10)?;
        buffer.write(0, &bytes(number));
        Ok::<_, StoreError>(store.insert(key(number), metadata(), buffer))
    };
    let held = fill(1).unwrap();
    assert!(matches!(fill(2), Err(StoreError::MemoryFull { .. })));
    store.remove(&[key(1)], |outcome| outcome.unwrap());
    assert!(store.get(key(1), Accuracy::Exact, 0, false).unwrap().is_none());
    assert!(fill(2).is_err(), "its memory is still read");
    assert_eq!(held.digest, held.value.digest());
    drop(held);
    fill(2).unwrap();
}

#[test]
fn a_directory_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let store = open(&options).0;
    assert!(matches!(
        Store::open(&options, &mut |_| {}),
        Err(StoreError::Unusable { .. })
    ));
    drop(store);
    open(&options);
}
