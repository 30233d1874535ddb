//! The shim's start: it leaves its parent, makes the pod's namespaces and opens its socket.

use crate::server::Server;
use crate::spawn;
use isopod_shim_protocol::{Ready, Response, ShimConfig, read};
use isopod_sys::cgroup::Hierarchies;
use isopod_sys::fdpass;
use nix::sched::{CloneFlags, unshare};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// Low enough to outlive its containers when memory is short, as upstream's pause containers are.
const OOM_SCORE: &str = "-998";

pub fn run(dir: &Path) -> ExitCode {
    match prepare(dir) {
        Ok(mut server) => {
            say(&Ready::Serving { pid: std::process::id() as i32 });
            detach_stdio();
            match server.run() {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(e) => {
            say(&Ready::Failed { why: e.to_string() });
            ExitCode::FAILURE
        }
    }
}

fn say(ready: &Ready) {
    if let Ok(text) = serde_json::to_string(ready) {
        let _ = writeln!(io::stdout(), "{text}");
    }
}

/// The parent reads our stdout to its end: let go of it.
fn detach_stdio() {
    if let Ok([stdin, stdout, stderr]) = spawn::null() {
        let _ = nix::unistd::dup2_stdin(&stdin);
        let _ = nix::unistd::dup2_stdout(&stdout);
        let _ = nix::unistd::dup2_stderr(&stderr);
    }
}

fn prepare(dir: &Path) -> io::Result<Server> {
    let config: ShimConfig = serde_json::from_slice(&std::fs::read(dir.join("shim.json"))?)?;
    let said = |what: &'static str| move |e: io::Error| io::Error::other(format!("{what}: {e}"));
    die_with(config.parent).map_err(said("cannot tie its life to the server's"))?;
    nix::sys::prctl::set_name(c"isopod-shim")?;
    nix::sys::prctl::set_child_subreaper(true)?;
    nix::unistd::setsid()?;
    // Fails in a container without the capability: then the score stays.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let hierarchies = Hierarchies::detect()?;
    let group = hierarchies.group(&config.cgroup)?;
    group.create().and_then(|()| group.add(0)).map_err(said("cannot leave the server's control group"))?;
    make_namespaces(&config).map_err(said("cannot make the pod's namespaces"))?;
    for (name, value) in &config.sysctls {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        std::fs::write(&file, value).map_err(|e| io::Error::other(format!("cannot set sysctl {name}={value}: {e}")))?;
    }
    let pid1 = if config.shared_pid { Some(make_pid_namespace()?) } else { None };
    let socket = dir.join("shim.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = fdpass::bind(&socket).map_err(said("cannot open the shim's socket"))?;
    Server::new(hierarchies, listener, pid1)
}

/// Until it is known who it is: a server that dies before it has written that down would leave a shim that nobody finds.
fn die_with(parent: i32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    match nix::unistd::getppid().as_raw() == parent {
        true => Ok(()),
        false => Err(io::Error::other("the server is gone")),
    }
}

/// From the first request on it outlives its parent: only who has written it down asks it something.
pub fn outlive_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(None)?)
}

fn make_namespaces(config: &ShimConfig) -> io::Result<()> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, config.new_network);
    flags.set(CloneFlags::CLONE_NEWIPC, config.new_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, config.new_uts);
    if !flags.is_empty() {
        unshare(flags)?;
    }
    if config.new_uts && !config.hostname.is_empty() {
        nix::unistd::sethostname(&config.hostname)?;
    }
    if config.new_network {
        isopod_sys::process::loopback_up()?;
    }
    Ok(())
}

fn make_pid_namespace() -> io::Result<i32> {
    let (mut socket, mut child) = spawn::helper("pidns", spawn::null()?, &[])?;
    let answer = read::<Response>(&mut socket)?;
    child.wait()?;
    match answer {
        Some(Response::Started { pid }) => Ok(pid),
        Some(Response::Failed { why }) => Err(io::Error::other(why)),
        _ => Err(io::Error::other("the helper that makes the process namespace died")),
    }
}
