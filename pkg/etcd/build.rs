//! Generates the messages, the services and their clients from `proto/`, in Rust alone: no `protoc` is needed.

use prost::Message as _;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/rpc.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        // Keys and values are slices of the request as it came.
        .bytes(".")
        .skip_debug(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
