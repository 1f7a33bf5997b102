//! Compiles the C++ files that wrap what tch lacks, and sets the binary's search path for libtorch.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Files of `src/torch` to compile, and the headers that they include.
const SOURCES: [&str; 6] =
    ["early.cpp", "glue.cpp", "kernels.cpp", "own_cuda.cpp", "training.cpp", "world.cpp"];
const HEADERS: [&str; 14] = [
    "attention.h", "cuda_kernels.h", "guarded.h", "halves.h", "heads.h", "jobs.h", "kernels.h", "lanes.h",
    "narrow.h", "newest.h", "norms.h", "on_cuda.h", "rows.h", "wide.h",
];

fn main() {
    // `.cargo/config.toml` sets LIBTORCH to the folder that `scripts/setup.sh` makes.
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    for file in SOURCES.into_iter().chain(HEADERS).chain(["gloo"]) {
        println!("cargo:rerun-if-changed=src/torch/{file}");
    }
    let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        println!("cargo:error=LIBTORCH is not set: run scripts/setup.sh and build from within the checkout");
        return;
    };
    let origin = libtorch.join("origin");
    println!("cargo:rerun-if-changed={}", origin.display());
    let real =
        fs::read_to_string(&origin).map_or_else(|_| libtorch.clone(), |path| PathBuf::from(path.trim()));
    compile_glue(&libtorch);
    // The absolute folder first, so that the binary runs from anywhere; then one beside the binary, for releases.
    for folder in [real.join("lib").display().to_string(), "$ORIGIN/../lib".to_owned()] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}

fn compile_glue(libtorch: &Path) {
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .flag("-std=c++17")
        .include("src/torch")
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .files(SOURCES.map(|file| Path::new("src/torch").join(file)))
        .compile("loraxs_glue");
}
