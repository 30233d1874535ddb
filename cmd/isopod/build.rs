//! Embeds the shim: the binary that `ISOPOD_SHIM` names (the Makefile builds it first), else one built here, so that a
//! plain `cargo build` works too. It is embedded compressed: a third of the size, unpacked once into memory where it runs from.
//! And asks the linker of a release for a smaller program.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=ISOPOD_SHIM");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    link_small(&out);
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

/// Functions that came out the same are kept once (Rust promises no addresses of their own to functions; browsers link SQLite and
/// BoringSSL so), and relative relocations take a bit each instead of 24 bytes. Not every linker can do the one, not every C
/// library starts with the other (glibc from 2.36): what a program is linked with and runs is taken.
fn link_small(out: &Path) {
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    if var("PROFILE") != "release" || var("HOST") != var("TARGET") {
        return;
    }
    let (source, program) = (out.join("linked.rs"), out.join("linked"));
    std::fs::write(&source, "fn main() {}").expect("cargo's directory can be written to");
    for flag in ["-Wl,--icf=all", "-Wl,-z,pack-relative-relocs"] {
        let mut rustc = Command::new(var("RUSTC"));
        rustc
            .args(["--target", &var("TARGET"), "-C", &format!("link-arg={flag}")])
            .arg("-o")
            .arg(&program)
            .arg(&source);
        rustc.args(var("CARGO_ENCODED_RUSTFLAGS").split('\x1f').filter(|flag| !flag.is_empty()));
        if let Ok(linker) = std::env::var("RUSTC_LINKER") {
            rustc.args(["-C", &format!("linker={linker}")]);
        }
        let works = |command: &mut Command| command.output().is_ok_and(|o| o.status.success());
        if works(&mut rustc) && works(&mut Command::new(&program)) {
            println!("cargo:rustc-link-arg-bins={flag}");
        }
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
