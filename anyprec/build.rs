//! Compiles the C++ behind the bridge against the libtorch that torch-sys found.

use std::path::PathBuf;

fn main() {
    // torch-sys publishes its library folder; the headers lie beside it.
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from).unwrap_or_default();
    assert!(lib.is_dir(), "torch-sys named no libtorch folder ({}): run `make setup`", lib.display());
    let include = lib.with_file_name("include");
    let sources = ["native/quantize.cc", "native/update.cc"];
    cxx_build::CFG.exported_header_dirs.push(&include);
    let api = include.join("torch/csrc/api/include");
    cxx_build::CFG.exported_header_dirs.push(&api);
    cxx_build::bridge("src/native.rs")
        .files(sources)
        .std("c++17")
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .flag("-fopenmp") // at::parallel_for is serial without
        .flag("-fno-math-errno")
        .flag("-fno-trapping-math") // lets the rounding loops vectorize
        .opt_level(3)
        .warnings(false) // libtorch's headers
        .compile("anybit-anyprec-native");
    println!("cargo::rustc-link-lib=gomp");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo::metadata=libtorch_lib={}", lib.display());
    for file in
        sources.iter().chain(&["native/tensors.h", "native/quantize.h", "native/update.h", "src/native.rs"])
    {
        println!("cargo::rerun-if-changed={file}");
    }
}
