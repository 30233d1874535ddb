//! Starting a helper: this program again, in another role, with a socket to talk over.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

/// stdin, stdout and stderr for a helper; what it starts has the same.
pub type Stdio3 = [OwnedFd; 3];

pub fn null() -> io::Result<Stdio3> {
    let open = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    Ok([open()?, open()?, open()?])
}

/// Starts a helper and sends it its request.
pub fn helper(role: &str, stdio: Stdio3, request: &[u8]) -> io::Result<(UnixStream, Child)> {
    let (ours, theirs) = UnixStream::pair()?;
    let [stdin, stdout, stderr] = stdio;
    let mut command = Command::new("/proc/self/exe");
    command.args([role, &theirs.as_raw_fd().to_string()]).env_clear().current_dir("/");
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    isopod_sys::process::inherit(&theirs, true)?;
    let child = command.spawn();
    drop(theirs);
    let child = child?;
    // Large requests (environments) may exceed the socket's buffer; the helper reads from its start.
    isopod_sys::fdpass::send(ours.as_fd(), request, &[])?;
    Ok((ours, child))
}

/// Both ends close on exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
