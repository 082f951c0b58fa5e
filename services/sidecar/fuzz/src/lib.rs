//! What the targets share. For model files: a directory with a small sound model of which one file is replaced by the fuzzer's bytes.

mod codec;

pub use codec::{chunk_seeds, decode_chunk};

use std::cell::RefCell;
use std::path::PathBuf;

use kvasir_model::testing::TestModel;
use kvasir_model::{ModelSource, TensorId};

thread_local! {
    static DIRECTORY: RefCell<Option<(tempfile::TempDir, PathBuf)>> = const { RefCell::new(None) };
}

/// Opens a model whose file `name` holds `bytes`, and reads every weight if it opens. A GGUF file is a model by itself.
///
/// # Panics
/// When an error is not one line, or says nothing of a file.
pub fn open_with(name: &'static str, bytes: &[u8]) {
    let path = DIRECTORY.with_borrow_mut(|directory| {
        let (_, path) = directory.get_or_insert_with(|| {
            let root = tempfile::tempdir().expect("a temporary directory");
            TestModel::default()
                .write_hugging_face(root.path())
                .expect("a writable directory");
            let path = root.path().to_owned();
            (root, path)
        });
        path.clone()
    });
    std::fs::write(path.join(name), bytes).expect("a writable file");
    let model = if name.ends_with(".gguf") { path.join(name) } else { path };
    match ModelSource::open(&model) {
        Ok(source) => TensorId::all(source.config()).for_each(|id| {
            source.values(id).expect("what was checked at opening");
        }),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n') && text.len() < 4000, "{text}");
        }
    }
}
