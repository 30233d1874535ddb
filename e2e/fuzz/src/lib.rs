//! What must hold whatever bytes a client sends, one check for each decoder and engine, and one for the whole server.
//!
//! A check takes any bytes and panics where something is wrong: a panic inside, a value that does not survive its own
//! encoding, a patch that says another thing the second time, an answer that is no `Status`. libFuzzer looks for such bytes
//! (`make fuzz`), with limits on time and memory; what it learned lies in `corpus/`, and `cargo test` goes through all of it.
//!
//! Invariant: a check depends on its bytes alone.

mod cel;
mod decoders;
mod definitions;
mod etcd;
mod kinds;
mod patches;
mod server;
mod streams;
mod text;

/// A check and its name, which is its directory's in `corpus/`.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    pub check: fn(&[u8]),
}

/// All checks.
pub const TARGETS: &[Target] = &[
    Target { name: "apply", check: patches::apply },
    Target { name: "cel", check: cel::expression },
    Target { name: "continue", check: server::continue_token },
    Target { name: "definition", check: definitions::definition },
    Target { name: "etcd", check: etcd::calls },
    Target { name: "json", check: decoders::json },
    Target { name: "json-patch", check: patches::json_patch },
    Target { name: "kinds", check: kinds::object },
    Target { name: "managed-fields", check: patches::managed_fields },
    Target { name: "merge-patch", check: patches::merge_patch },
    Target { name: "port-forward", check: streams::port_forward },
    Target { name: "protobuf", check: decoders::protobuf },
    Target { name: "quantity", check: text::quantity },
    Target { name: "remote-command", check: streams::remote_command },
    Target { name: "request", check: server::requests },
    Target { name: "scalar", check: text::scalar },
    Target { name: "selector", check: text::selector },
    Target { name: "spdy", check: streams::spdy },
    Target { name: "strategic-merge", check: patches::strategic_merge },
    Target { name: "yaml", check: server::yaml },
];

/// The check of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|t| t.name == name)
}

/// Text in parts, which a line of its own with `%%` divides.
fn parts(data: &[u8]) -> Vec<&[u8]> {
    let mark: &[u8] = b"\n%%\n";
    let (mut all, mut rest) = (Vec::new(), data);
    while let Some(at) = rest.windows(mark.len()).position(|w| w == mark) {
        all.push(&rest[..at]);
        rest = &rest[at + mark.len()..];
    }
    all.push(rest);
    all
}
