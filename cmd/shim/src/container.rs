//! One container as the shim holds it: its streams, its log, and how it ended.

use crate::log::{Log, Stream, nanos};
use crate::spawn::{self, Stdio3};
use isopod_shim_protocol::{Exit, Start};
use isopod_sys::cgroup::Hierarchies;
use nix::sys::wait::WaitStatus;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::SystemTime;

/// More than this waiting for the container's stdin pauses those who feed it.
const HIGH_WATER: usize = 256 << 10;

pub struct Container {
    pub pid: Option<i32>,
    pub exit: Option<Exit>,
    bundle: PathBuf,
    pub cgroup: String,
    pub tty: bool,
    pub stdin_once: bool,
    pub log: Log,
    /// Their read ends. With a terminal, its master is `stdout` and `stdin`.
    pub stdout: Option<File>,
    pub stderr: Option<File>,
    pub stdin: Option<File>,
    queue: Vec<u8>,
    close_stdin: bool,
}

impl Container {
    /// The container and its first process's standard streams.
    pub fn new(start: &Start) -> io::Result<(Self, Stdio3)> {
        let mut container = Container {
            pid: None,
            exit: None,
            bundle: start.bundle.clone(),
            cgroup: start.cgroup.clone(),
            tty: start.tty,
            stdin_once: start.stdin_once,
            log: Log::open(&start.log_path)?,
            stdout: None,
            stderr: None,
            stdin: None,
            queue: vec![],
            close_stdin: false,
        };
        let mut stdio = spawn::null()?;
        if !start.tty {
            let (out, err) = (spawn::pipe()?, spawn::pipe()?);
            for end in [&out.0, &err.0] {
                spawn::set_nonblocking(end)?;
            }
            (container.stdout, container.stderr) = (Some(out.0.into()), Some(err.0.into()));
            (stdio[1], stdio[2]) = (out.1, err.1);
            if start.stdin {
                let (theirs, ours) = spawn::pipe()?;
                spawn::set_nonblocking(&ours)?;
                container.stdin = Some(ours.into());
                stdio[0] = theirs;
            }
        }
        Ok((container, stdio))
    }

    pub fn take_terminal(&mut self, master: OwnedFd, stdin: bool) -> io::Result<()> {
        spawn::set_nonblocking(&master)?;
        let master = File::from(master);
        if stdin {
            self.stdin = Some(master.try_clone()?);
        }
        self.stdout = Some(master);
        Ok(())
    }

    pub fn resize(&self, width: u16, height: u16) {
        if let Some(terminal) = self.stdout.as_ref().filter(|_| self.tty) {
            let _ = isopod_sys::terminal::resize(terminal, width, height);
        }
    }

    /// Reads what a stream has, at most one buffer, into the log. `None`: nothing now. Empty: it ended.
    pub fn read(&mut self, stream: Stream) -> Option<Vec<u8>> {
        let file = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let mut buffer = [0; 16 << 10];
        let n = match file.as_mut()?.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return None,
            // A terminal whose last holder closed it says EIO.
            Err(_) => 0,
        };
        if n == 0 {
            *file = None;
            self.log.finish(stream);
        } else {
            self.log.write(stream, &buffer[..n]);
        }
        Some(buffer[..n].to_vec())
    }

    pub fn wants_stdin(&self) -> bool {
        self.stdin.is_some() && (!self.queue.is_empty() || self.close_stdin)
    }

    pub fn is_full(&self) -> bool {
        self.queue.len() > HIGH_WATER
    }

    pub fn feed(&mut self, data: &[u8]) {
        if self.stdin.is_some() {
            self.queue.extend_from_slice(data);
            self.flush_stdin();
        }
    }

    /// The first client that was attached with stdin is done.
    pub fn end_stdin(&mut self) {
        if self.stdin_once && !self.tty {
            self.close_stdin = true;
            self.flush_stdin();
        }
    }

    pub fn flush_stdin(&mut self) {
        let Some(stdin) = self.stdin.as_mut() else { return };
        while !self.queue.is_empty() {
            match stdin.write(&self.queue) {
                Ok(n) => {
                    self.queue.drain(..n);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.queue.clear();
                    self.stdin = None;
                    return;
                }
            }
        }
        if self.close_stdin {
            self.stdin = None;
        }
    }

    /// Records the end. Its remaining processes (those of an exec, or daemons in a shared process namespace) go with it.
    pub fn ended(&mut self, status: WaitStatus, hierarchies: &Hierarchies) -> Exit {
        let (code, signal) = code(status);
        let mut exit = Exit { code, signal, at: nanos(SystemTime::now()), oom_killed: false };
        if let Ok(group) = hierarchies.group(&self.cgroup) {
            exit.oom_killed = group.oom_kills() > 0;
            let _ = group.signal(nix::sys::signal::Signal::SIGKILL as i32);
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.log.finish(stream);
        }
        (self.stdin, self.stdout, self.stderr) = (None, None, None);
        let _ = self.persist(&exit);
        self.exit = Some(exit.clone());
        exit
    }

    /// A reader sees the whole record or none.
    fn persist(&self, exit: &Exit) -> io::Result<()> {
        let temporary = self.bundle.join("exit.json.new");
        std::fs::write(&temporary, serde_json::to_vec(exit)?)?;
        std::fs::rename(temporary, self.bundle.join("exit.json"))
    }
}

/// The exit code as shells have it, and the signal.
pub fn code(status: WaitStatus) -> (i32, Option<i32>) {
    match status {
        WaitStatus::Exited(_, code) => (code, None),
        WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
        _ => (255, None),
    }
}
