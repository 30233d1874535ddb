//! The pod's shared process namespace: made by one helper, kept by its first process, which reaps orphans.

use isopod_shim_protocol::{Response, write};
use isopod_sys::process;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

pub fn run(socket: &str) -> ExitCode {
    process::default_signals();
    let Ok(Ok(socket)) = socket.parse().map(process::inherited) else { return ExitCode::FAILURE };
    let started = unshare(CloneFlags::CLONE_NEWPID).map_err(std::io::Error::from).and_then(|()| {
        let null = || Stdio::null();
        Command::new("/proc/self/exe").arg("pause").env_clear().stdin(null()).stdout(null()).stderr(null()).spawn()
    });
    let answer = match started {
        Ok(child) => Response::Started { pid: child.id() as i32 },
        Err(e) => Response::Failed { why: format!("cannot make a process namespace: {e}") },
    };
    let _ = write(&mut UnixStream::from(socket), &answer);
    ExitCode::SUCCESS
}

/// The first process of the namespace. It has no signal handlers, so signals from inside the namespace do nothing to it.
pub fn pause() -> ExitCode {
    use nix::sys::signal::{SigSet, Signal};
    let _ = nix::sys::prctl::set_name(c"isopod-pause");
    let _ = isopod_sys::process::close_others_on_exec();
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    if children.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    loop {
        let _ = children.wait();
        while waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            .is_ok_and(|s| s != nix::sys::wait::WaitStatus::StillAlive)
        {}
    }
}
