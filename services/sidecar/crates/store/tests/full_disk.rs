//! A disk that is full before the store's own limit. Alone in its process: a child that is about to be another program holds what its parent had open for a
//! moment, the lock of a store's directory too.

mod common;

use std::path::Path;
use std::process::Command;

use common::{has, open, options, put, remove, wait_until};
use kvasir_store::StoreError;

/// A real file system that is full; it needs the right to mount one, as containers that build have.
#[test]
fn a_full_file_system_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mounted = |arguments: &[&str]| {
        Command::new("mount")
            .args(arguments)
            .arg(directory.path())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !mounted(&["-t", "tmpfs", "-o", "size=1m", "none"]) {
        eprintln!("may not mount a tmpfs here: the tier's own limit is tested instead");
        return;
    }
    let outcome = std::panic::catch_unwind(|| fill_a_file_system(directory.path()));
    assert!(
        Command::new("umount")
            .arg("-l")
            .arg(directory.path())
            .status()
            .unwrap()
            .success()
    );
    outcome.unwrap();
}

fn fill_a_file_system(directory: &Path) {
    let options = options(directory);
    let store = open(&options).0;
    let refused = (0..1000).find(|number| put(&store, *number).is_err()).unwrap();
    assert!(
        matches!(put(&store, refused), Err(StoreError::DiskFull { .. })),
        "{:?}",
        put(&store, refused)
    );
    assert!(refused > 30 && (0..refused).all(|number| has(&store, number)));
    drop(store);
    let store = open(&options).0;
    assert!((0..refused).all(|number| has(&store, number)));
    // Whether or not the removal itself could be written, space comes back.
    let _ = remove(&store, &(0..refused - 5).collect::<Vec<_>>());
    wait_until(|| put(&store, refused).is_ok());
    assert!((refused - 5..=refused).all(|number| has(&store, number)));
}
