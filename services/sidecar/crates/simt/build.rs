//! Compiles the CUDA kernels for the host, over the SIMT layer.

use std::path::{Path, PathBuf};

fn main() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let host = kernels.join("host");
    println!("cargo::rerun-if-changed={}", kernels.display());
    let mut common = cc::Build::new();
    // Kernels hold no assertions of the host's and are slow enough: debug information would double what the linker reads.
    common
        .cpp(true)
        .std("c++20")
        .debug(false)
        .opt_level(1)
        .warnings(true)
        .extra_warnings(true)
        .flag("-fno-exceptions")
        .flag("-fno-rtti");
    let mut layer = common.clone();
    layer
        .objects(compiled(
            &common,
            &["-Wno-missing-field-initializers"],
            &sources(&host, "cpp"),
        ))
        .compile("kvasir_simt_layer");
    // The sanitizer's pass calls a function before each access to memory; the layer has those functions, and the sanitizer's own runtime is
    // not linked. Contraction is off, so that a product and a sum round as often as they do on the device.
    let instrumented = [
        "-fsanitize=thread",
        "-ffp-contract=off",
        "-Wno-unused-parameter",
        "-Wno-unknown-pragmas",
        "-x",
        "c++",
    ];
    let mut all = sources(&kernels, "cu");
    all.extend(sources(&host, "cu"));
    let objects = compiled(&common, &instrumented, &all);
    // Kernels make themselves known from static initialisers, which a linker leaves out of what nobody names.
    common
        .link_lib_modifier("+whole-archive")
        .objects(objects)
        .compile("kvasir_simt_kernels");
}

/// Compiles on all cores: with the crate's own feature for that, whatever else uses it would be built a second time.
fn compiled(common: &cc::Build, flags: &[&str], files: &[PathBuf]) -> Vec<PathBuf> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || {
            let mut objects = Vec::new();
            while let Some(file) = files.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                let mut build = common.clone();
                for flag in flags {
                    build.flag(flag);
                }
                objects.extend(build.file(file).compile_intermediates());
            }
            objects
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let results = workers
            .into_iter()
            .map(|worker| worker.join().expect("a file compiles"));
        results.flatten().collect()
    })
}

fn sources(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}
