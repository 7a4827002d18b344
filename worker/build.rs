//! Compiles the C++ behind the collectives' bridge, and lets the programs find libtorch.

use std::path::PathBuf;

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from).unwrap_or_default();
    assert!(lib.is_dir(), "torch-sys named no libtorch folder ({}): run `make setup`", lib.display());
    cxx_build::bridge("src/dist/bridge.rs")
        .file("native/collectives.cc")
        .include("native") // the declarations that stand in for gloo's headers
        .std("c++17")
        .define("USE_C10D_GLOO", None)
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .warnings(false) // libtorch's headers
        .compile("anybit-worker-native");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
    for path in ["native", "src/dist/bridge.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
}
