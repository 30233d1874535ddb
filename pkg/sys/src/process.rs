//! Processes: programs run from sealed memory, forks, signals, descriptors across `exec`.
//!
//! Invariant: [`fork`] refuses in a process with more than one thread, so what the child does (allocate, lock) is sound.

use nix::fcntl::{FcntlArg, FdFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal as set_handler, sigprocmask};
use nix::unistd::{ForkResult, Pid};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Since Linux 6.3; older kernels know no flag and always allow execution.
const MFD_EXEC: u32 = 0x10;

/// A program in memory that nobody can change, root and the program itself included (CVE-2019-5736).
#[derive(Debug)]
pub struct SealedProgram(OwnedFd);

impl SealedProgram {
    pub fn new(name: &str, mut program: impl io::Read) -> io::Result<Self> {
        let name = CString::new(name)?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(name.as_c_str(), flags | MFdFlags::from_bits_retain(MFD_EXEC))
            .or_else(|_| memfd_create(name.as_c_str(), flags))?;
        let mut file = File::from(fd);
        io::copy(&mut program, &mut file)?;
        let fd = OwnedFd::from(file);
        let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(SealedProgram(fd))
    }

    /// To be executed by this process or a child of it, while this value lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// In the child `None`, in the parent the child's process id.
pub fn fork() -> io::Result<Option<Pid>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("only a process with one thread may fork"));
    }
    // SAFETY: this process has one thread (checked above, and only it could start another), so no lock is held by a thread
    // that the child lacks: the child may run any code.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(None),
        ForkResult::Parent { child } => Ok(Some(child)),
    }
}

/// Gives every signal its default action and unblocks all: what a program expects to start with. (Rust's start-up ignores
/// SIGPIPE, which an `exec` would hand down.)
pub fn default_signals() {
    for s in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of ours.
        let _ = unsafe { set_handler(s, SigHandler::SigDfl) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Lets a descriptor through the next `exec`, or not.
pub fn inherit(fd: impl AsFd, yes: bool) -> io::Result<()> {
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(if yes { FdFlag::empty() } else { FdFlag::FD_CLOEXEC }))?;
    Ok(())
}

/// Takes over a descriptor that the parent let through [`inherit`], by the number it has been told.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    if number < 3 || !Path::new(&format!("/proc/self/fd/{number}")).exists() {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open (checked) and was handed over by the parent for this call alone: callers name each
    // number once, from their arguments.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    inherit(&fd, false)?;
    Ok(fd)
}

/// Marks all descriptors but the three standard ones as closed at `exec`.
pub fn close_others_on_exec() -> io::Result<()> {
    // SAFETY: the call takes three integers and changes flags of descriptors only.
    let r = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if r == 0 {
        return Ok(());
    }
    // Before Linux 5.11.
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_string_lossy().parse::<i32>().unwrap_or(0);
        if number > 2 {
            // SAFETY: setting a flag of a number that may have been closed meanwhile fails without effect.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Sends any signal, the real-time ones included. A process that is gone is none to fail for.
pub fn signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: touches no memory of this process.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        e => Err(e),
    }
}

/// Is there a process with this id (not a zombie)?
pub fn alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name in parentheses may hold anything: the state follows the last one.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// When a process started, in ticks since boot: with its id it names one process for ever.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Runs `f` on a thread of its own that has entered the network namespace at `netns`.
pub fn in_network_namespace<T: Send + 'static>(
    netns: &Path,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let ns = File::open(netns)?;
    let run = move || {
        nix::sched::setns(&ns, nix::sched::CloneFlags::CLONE_NEWNET)?;
        f()
    };
    let thread = std::thread::Builder::new().name("netns".into()).spawn(run)?;
    thread.join().map_err(|_| io::Error::other("the thread panicked"))?
}

/// Switches the loopback interface of this thread's network namespace on.
pub fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq` through the pointer, which lives until the call returns.
    let r = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn a_sealed_program_cannot_be_written() {
        let program = SealedProgram::new("test", &b"#!/bin/sh\n"[..]).unwrap();
        let again = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(program.path());
        let failed = match again {
            Err(_) => true,
            Ok(mut f) => f.write_all(b"x").is_err(),
        };
        assert!(failed);
    }

    #[test]
    fn this_process_is_alive_and_has_a_start() {
        let me = std::process::id() as i32;
        assert!(alive(me) && start_time(me).is_some());
        assert!(!alive(i32::MAX));
    }

    #[test]
    fn a_threaded_process_does_not_fork() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || receive.recv());
        assert!(fork().is_err());
        drop(send);
        let _ = other.join();
    }
}
