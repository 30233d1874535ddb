//! The helper that makes a container: its root, its process with libcontainer, and starts it.
//!
//! The root is mounted in a namespace of the helper's own, below a private mount: the container's namespace inherits it and
//! no other sees it, so there is nothing to unmount when the container ends.

use crate::payload::Payload;
use isopod_shim_protocol::{DeviceRule, Propagation, Response, Start, encode, read};
use isopod_sys::cgroup::Hierarchies;
use isopod_sys::confined::Root;
use isopod_sys::devices::{Kind, Rule};
use isopod_sys::{fdpass, mount, process};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

pub fn run(socket: &str) -> ExitCode {
    let Ok(Ok(socket)) = socket.parse().map(process::inherited) else { return ExitCode::FAILURE };
    let mut socket = UnixStream::from(socket);
    let (answer, master) = match read::<Start>(&mut socket) {
        Ok(Some(request)) => match start(&request) {
            Ok((pid, master)) => (Response::Started { pid }, master),
            Err(why) => (Response::Failed { why }, None),
        },
        Ok(None) => return ExitCode::FAILURE,
        Err(e) => (Response::Failed { why: e.to_string() }, None),
    };
    answer_with(&socket, &answer, master)
}

pub fn answer_with(socket: &UnixStream, answer: &Response, master: Option<OwnedFd>) -> ExitCode {
    let fds: Vec<BorrowedFd<'_>> = master.iter().map(AsFd::as_fd).collect();
    match encode(answer).and_then(|bytes| fdpass::send(socket, &bytes, &fds)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn start(request: &Start) -> Result<(i32, Option<OwnedFd>), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| format!("{what}: {e}")
    };
    process::default_signals();
    // The server's own groups are nobody's business in the container.
    nix::unistd::setgroups(&[]).map_err(|e| e.to_string())?;
    enter_cgroup(request).map_err(failed("cannot enter the container's control group"))?;
    mount_root(request).map_err(failed("cannot mount the container's root"))?;
    give_stdio_to(request.uid);
    let console = request.tty.then(|| Console::listen(&request.bundle)).transpose().map_err(failed("console"))?;
    let _ = std::fs::remove_dir_all(request.state_root.join(&request.id));
    let mut container = ContainerBuilder::new(request.id.clone(), SyscallType::Linux)
        .with_executor(Payload)
        .with_console_socket(console.as_ref().map(|c| c.path.clone()))
        .with_root_path(&request.state_root)
        .map_err(chain)?
        .as_init(&request.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(chain)?;
    let pid = container.pid().ok_or("the container has no process")?.as_raw();
    let finish = || -> Result<Option<OwnedFd>, String> {
        let master = console.map(Console::accept).transpose().map_err(failed("cannot receive the terminal"))?;
        finish_mounts(pid, &request.propagation, request.devices.is_none())
            .map_err(failed("cannot finish the container's mounts"))?;
        container.start().map_err(chain)?;
        Ok(master)
    };
    match finish() {
        Ok(master) => Ok((pid, master)),
        Err(e) => {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            Err(e)
        }
    }
}

/// The error and its sources; the innermost says most, and libcontainer's outer ones often repeat it.
fn chain(e: libcontainer::error::LibcontainerError) -> String {
    let (mut text, mut next) = (e.to_string(), std::error::Error::source(&e));
    while let Some(e) = next {
        let own = e.to_string();
        if !text.ends_with(&own) {
            text = format!("{text}: {own}");
        }
        next = e.source();
    }
    // What the payload said is all that a user needs.
    match text.find("exec: \"") {
        Some(at) => text[at..].to_owned(),
        None => text,
    }
}

fn enter_cgroup(request: &Start) -> io::Result<()> {
    let hierarchies = Hierarchies::detect()?;
    let group = hierarchies.group(&request.cgroup)?;
    if let Some(rules) = &request.devices {
        group.allow_devices(&rules.iter().map(rule).collect::<Vec<_>>())?;
    }
    // libcontainer puts the container where the controllers are, and kills all that it finds there if it fails: this
    // process must be elsewhere. What it leaves out (systemd's hierarchy, the unified one of a hybrid machine) is inherited.
    group.add_beside_controllers(0)
}

fn rule(r: &DeviceRule) -> Rule {
    let kind = match r.kind {
        'b' => Kind::Block,
        'c' => Kind::Char,
        _ => Kind::Any,
    };
    let has = |c| r.access.contains(c);
    Rule { kind, major: r.major, minor: r.minor, read: has('r'), write: has('w'), mknod: has('m') }
}

fn mount_root(request: &Start) -> io::Result<()> {
    let root = &request.rootfs;
    unshare(CloneFlags::CLONE_NEWNS)?;
    std::env::set_current_dir(&root.layers)?;
    mount::overlay(&root.lowers, &root.upper, &root.work, &root.target)?;
    std::env::set_current_dir("/")?;
    // An image may name a working directory that it does not have.
    Root::open(&root.target)?.make_directories(&root.working_dir, |_| Ok(()))?;
    Ok(())
}

/// A process may open `/dev/stdout` again only if it owns what that leads to.
pub fn give_stdio_to(uid: u32) {
    for fd in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        let Ok(stat) = nix::sys::stat::fstat(fd) else { continue };
        let is_null = stat.st_rdev == nix::sys::stat::makedev(1, 3);
        if !is_null && stat.st_uid != uid {
            let _ = nix::unistd::fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>);
        }
    }
}

/// Waits for libcontainer to send the terminal's master.
struct Console {
    path: std::path::PathBuf,
    listener: std::os::unix::net::UnixListener,
}

impl Console {
    fn listen(bundle: &Path) -> io::Result<Self> {
        let path = bundle.join("console.sock");
        let _ = std::fs::remove_file(&path);
        Ok(Console { listener: fdpass::bind(&path)?, path })
    }

    fn accept(self) -> io::Result<OwnedFd> {
        let (socket, _) = self.listener.accept()?;
        let _ = std::fs::remove_file(&self.path);
        receive_master(&socket)
    }
}

pub fn receive_master(socket: &UnixStream) -> io::Result<OwnedFd> {
    let (_, fds) = fdpass::receive(socket, &mut [0; 64])?;
    fds.into_iter().next().ok_or_else(|| io::Error::other("no terminal was sent"))
}

/// What libcontainer does not do, from a process of its own in the container's mount namespace: each mount's propagation
/// (it knows one for all), and version 1's control groups read-only (it mounts them so that the container could lift its
/// own limits).
fn finish_mounts(pid: i32, mounts: &[(std::path::PathBuf, Propagation)], privileged: bool) -> io::Result<()> {
    let protected = match privileged || Hierarchies::detect()?.is_unified() {
        true => vec![],
        false => mount::table_of(pid)?.into_iter().filter(|m| m.path.starts_with("/sys/fs/cgroup")).collect(),
    };
    if mounts.is_empty() && protected.is_empty() {
        return Ok(());
    }
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    if let Some(child) = process::fork()? {
        return match nix::sys::wait::waitpid(child, None)? {
            nix::sys::wait::WaitStatus::Exited(_, 0) => Ok(()),
            other => Err(io::Error::other(format!("{other:?}"))),
        };
    }
    let set = || -> io::Result<()> {
        setns(&namespace, CloneFlags::CLONE_NEWNS)?;
        for (path, propagation) in mounts {
            match propagation {
                Propagation::Private => mount::make_private(path)?,
                Propagation::Slave => mount::make_slave(path)?,
                Propagation::Shared => mount::make_shared(path)?,
            }
        }
        protected.iter().try_for_each(|m| mount::remount_read_only(&m.path))
    };
    std::process::exit(set().map_or_else(|e| e.raw_os_error().unwrap_or(1).clamp(1, 255), |()| 0))
}
