//! Compiles the BPF programs and generates their skeleton.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use libbpf_cargo::SkeletonBuilder;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/c");
    let object = build("ringwall")?;
    let node = build("node")?;
    if env::var_os("CARGO_FEATURE_TRAFFIC").is_some() {
        build("generator")?;
        build("peers")?;
    }

    // Names the programs: maps and links of an earlier process are reused as they are only where it is the same.
    println!("cargo:rustc-env=RINGWALL_BPF_BUILD_ID={}", build_id(&object)?);
    println!("cargo:rustc-env=RINGWALL_NODE_BUILD_ID={}", build_id(&node)?);
    Ok(())
}

/// FNV-1a over an object.
fn build_id(object: &Path) -> Result<u64, Box<dyn Error>> {
    let mut id: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in fs::read(object)? {
        id = (id ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    Ok(id)
}

/// Compiles `src/c/NAME.bpf.c`, writes its skeleton to `OUT_DIR/NAME.skel.rs` and answers where the object is.
fn build(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let source = format!("src/c/{name}.bpf.c");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let object = out.join(format!("{name}.bpf.o"));
    let mut arguments = vec!["-O2".to_owned(), "-Wall".to_owned(), "-Werror".to_owned()];
    // Debian keeps <asm/types.h> in a directory per architecture, which clang does not look into for the bpf target.
    let headers = format!("/usr/include/{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    if fs::exists(&headers)? {
        arguments.push(format!("-I{headers}"));
    }
    if name == "node" || name == "generator" {
        arguments.push("-mcpu=v3".to_owned()); // jumps and arithmetic of 32 bits: Linux 5.1
    }
    if env::var_os("CARGO_FEATURE_NEIGHBOUR").is_some() {
        arguments.push("-DRW_NEIGHBOUR".to_owned());
    }
    SkeletonBuilder::new()
        .source(&source)
        .obj(&object)
        .clang_args(arguments)
        .build()
        .map_err(|error| {
            format!("{source}: {error:#} (clang of version 14 or newer is needed: `apt-get install clang`)")
        })?;
    SkeletonBuilder::new()
        .obj(&object)
        .generate(out.join(format!("{name}.skel.rs")))?;
    Ok(object)
}
