//! Embeds the shim: the binary that `ISOPOD_SHIM` names (the Makefile builds it first), else one built here, so that a
//! plain `cargo build` works too. It is embedded compressed: a third of the size, unpacked once into memory where it runs from.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=ISOPOD_SHIM");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let shim = match std::env::var_os("ISOPOD_SHIM") {
        Some(path) => PathBuf::from(path),
        None => build(&out),
    };
    println!("cargo:rerun-if-changed={}", shim.display());
    let to = out.join("shim.zst");
    // Leave the copy alone when it is the same: `include_bytes!` would compile the crate again.
    let new = std::fs::read(&shim).unwrap_or_else(|e| panic!("cannot read the shim {}: {e}", shim.display()));
    let level = if std::env::var("PROFILE").as_deref() == Ok("release") { 19 } else { 1 };
    let new = zstd::encode_all(&new[..], level).expect("memory can be compressed");
    if std::fs::read(&to).ok().as_ref() != Some(&new) {
        std::fs::write(&to, new).unwrap_or_else(|e| panic!("cannot write {}: {e}", to.display()));
    }
}

/// A nested build in its own target directory: cargo holds a lock on ours.
fn build(out: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("cmd/isopod lies two below the root");
    for dir in ["cmd/shim", "pkg/sys", "pkg/shim-protocol"] {
        println!("cargo:rerun-if-changed={}", root.join(dir).display());
    }
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let profile = if std::env::var("PROFILE").as_deref() == Ok("release") { "release" } else { "ci" };
    let dir = out.join("shim-target");
    let status = Command::new(std::env::var_os("CARGO").expect("cargo sets CARGO"))
        .args(["build", "-p", "isopod-shim", "--profile", profile, "--target", &target, "--target-dir"])
        .arg(&dir)
        .current_dir(root)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "building the shim failed");
    dir.join(target).join(profile).join("isopod-shim")
}
