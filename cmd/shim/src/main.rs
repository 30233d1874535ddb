//! placeholder
fn main() {
    let s = oci_spec::runtime::LinuxSeccomp::default();
    let _ = libcontainer::seccomp::initialize_seccomp(&s);
}
