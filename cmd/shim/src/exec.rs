//! The helper that runs a process in a container that exists.
//!
//! Not libcontainer's "tenant": that one drops the seccomp profile on the way, so an exec would escape the container's
//! filter. The order of steps is libcontainer's for a container's first process.

use crate::create::{answer_with, give_stdio_to, receive_master};
use crate::payload;
use isopod_shim_protocol::{Exec, Response, read};
use isopod_sys::cgroup::Hierarchies;
use isopod_sys::process;
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{capabilities, seccomp, tty};
use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{LinuxSeccomp, Process};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

pub fn run(socket: &str) -> ExitCode {
    let Ok(Ok(socket)) = socket.parse().map(process::inherited) else { return ExitCode::FAILURE };
    let mut socket = UnixStream::from(socket);
    let (answer, master) = match read::<(Exec, i32)>(&mut socket) {
        Ok(Some((request, pid))) => match start(&request, pid) {
            Ok((pid, master)) => (Response::Started { pid }, master),
            Err(e) => (Response::Failed { why: e.to_string() }, None),
        },
        Ok(None) => return ExitCode::FAILURE,
        Err(e) => (Response::Failed { why: e.to_string() }, None),
    };
    answer_with(&socket, &answer, master)
}

/// The container's namespaces that differ from this process's. Those of the pod (network, IPC, host name) are the shim's.
fn namespaces(pid: i32) -> io::Result<Vec<(CloneFlags, File)>> {
    let mut found = Vec::new();
    // The mount namespace last: the others' files are in /proc of this one.
    for (name, flag) in
        [("pid", CloneFlags::CLONE_NEWPID), ("cgroup", CloneFlags::CLONE_NEWCGROUP), ("mnt", CloneFlags::CLONE_NEWNS)]
    {
        let (theirs, ours) = (format!("/proc/{pid}/ns/{name}"), format!("/proc/self/ns/{name}"));
        if std::fs::read_link(&theirs)? != std::fs::read_link(ours)? {
            found.push((flag, File::open(theirs)?));
        }
    }
    Ok(found)
}

fn start(request: &Exec, container: i32) -> io::Result<(i32, Option<OwnedFd>)> {
    process::default_signals();
    let process: Process = serde_json::from_value(request.process.clone())?;
    let seccomp: Option<LinuxSeccomp> = request.seccomp.clone().map(serde_json::from_value).transpose()?;
    let namespaces = namespaces(container)?;
    Hierarchies::detect()?.group(&request.cgroup)?.add(0)?;
    if let Some(score) = process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())?;
    }
    let console = request.tty.then(UnixStream::pair).transpose()?;
    let (mut failure, report) = io::pipe()?;
    if let Some((_, pid)) = namespaces.iter().find(|n| n.0 == CloneFlags::CLONE_NEWPID) {
        setns(pid, CloneFlags::CLONE_NEWPID)?;
    }
    let Some(child) = process::fork()? else {
        drop(failure);
        let e = enter_and_exec(namespaces, &process, seccomp.as_ref(), console.map(|c| c.1));
        let mut report = report;
        let _ = report.write_all(e.to_string().as_bytes());
        std::process::exit(126)
    };
    drop(report);
    let master = console.map(|(ours, theirs)| {
        drop(theirs);
        receive_master(&ours)
    });
    // Closed by a successful exec.
    let mut why = String::new();
    failure.read_to_string(&mut why)?;
    if !why.is_empty() {
        let _ = nix::sys::wait::waitpid(child, None);
        return Err(io::Error::other(why));
    }
    Ok((child.as_raw(), master.transpose()?))
}

/// Returns only when it failed.
fn enter_and_exec(
    namespaces: Vec<(CloneFlags, File)>,
    process: &Process,
    profile: Option<&LinuxSeccomp>,
    console: Option<UnixStream>,
) -> io::Error {
    match enter(namespaces, process, profile, console) {
        Ok(()) => payload::become_process(process),
        Err(e) => e,
    }
}

fn other(e: impl std::error::Error) -> io::Error {
    io::Error::other(match e.source() {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    })
}

fn enter(
    namespaces: Vec<(CloneFlags, File)>,
    process: &Process,
    profile: Option<&LinuxSeccomp>,
    console: Option<UnixStream>,
) -> io::Result<()> {
    let syscall: Box<dyn Syscall> = create_syscall();
    nix::unistd::setsid()?;
    for (flag, namespace) in namespaces.iter().filter(|n| n.0 != CloneFlags::CLONE_NEWPID) {
        setns(namespace, *flag)?;
    }
    drop(namespaces);
    if process.no_new_privileges() == Some(true) {
        nix::sys::prctl::set_no_new_privs()?;
    }
    if let Some(console) = console {
        tty::setup_console(syscall.as_ref(), console.into_raw_fd(), false).map_err(other)?;
    }
    let user = process.user();
    give_stdio_to(user.uid());
    for limit in process.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).map_err(other)?;
    }
    if let Some(mask) = user.umask() {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
    }
    std::env::set_current_dir(process.cwd()).map_err(|e| {
        io::Error::other(format!("chdir to cwd ({}) set in config.json failed: {e}", process.cwd().display()))
    })?;
    let groups: Vec<nix::unistd::Gid> =
        user.additional_gids().iter().flatten().map(|g| nix::unistd::Gid::from_raw(*g)).collect();
    nix::unistd::setgroups(&groups)?;
    // Keeps capabilities over the change of user, as libcontainer's `set_id` does, until they are dropped below.
    nix::sys::prctl::set_keepcaps(true)?;
    nix::unistd::setresgid(user.gid().into(), user.gid().into(), user.gid().into())?;
    nix::unistd::setresuid(user.uid().into(), user.uid().into(), user.uid().into())?;
    nix::sys::prctl::set_keepcaps(false)?;
    process::close_others_on_exec()?;
    capabilities::reset_effective(syscall.as_ref()).map_err(other)?;
    let install = || match profile {
        Some(p) => seccomp::initialize_seccomp(p).map(drop).map_err(other),
        None => Ok(()),
    };
    // Without "no new privileges" only a privileged process may install a filter: before the capabilities go.
    if process.no_new_privileges() != Some(true) {
        install()?;
    }
    if let Some(c) = process.capabilities() {
        capabilities::drop_privileges(c, syscall.as_ref()).map_err(other)?;
    }
    payload::find(process)?;
    if process.no_new_privileges() == Some(true) {
        install()?;
    }
    Ok(())
}
