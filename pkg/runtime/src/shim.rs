//! The runtime's side of a pod's shim: starting it, finding it again, asking it.

use crate::types::{Result, RuntimeError};
use isopod_shim_protocol::{self as protocol, Ready, Request, Response, ShimConfig};
use isopod_sys::fdpass;
use isopod_sys::process::{SealedProgram, alive, start_time};
use parking_lot::Mutex;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// A shim that does not answer for so long is broken. Starting a container is the slowest thing it does.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Shim {
    pub pid: i32,
    pub start: u64,
    sandbox: String,
    socket: PathBuf,
    /// If this process started it: to be waited for when it ends.
    child: Mutex<Option<Child>>,
}

impl Shim {
    /// Starts a shim for `dir`, which its socket and configuration are in. Blocks until it serves.
    pub fn spawn(program: &SealedProgram, dir: &Path, config: &ShimConfig) -> Result<Self> {
        let sandbox = config.sandbox_id.clone();
        let failed = |why: String| RuntimeError::Shim { sandbox: sandbox.clone(), why };
        std::fs::create_dir_all(dir).map_err(|e| failed(e.to_string()))?;
        let text = serde_json::to_vec(config).map_err(|e| failed(e.to_string()))?;
        std::fs::write(dir.join("shim.json"), text).map_err(|e| failed(e.to_string()))?;
        let mut command = Command::new(program.path());
        command.arg0_name("isopod-shim").arg("serve").arg(dir).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|e| failed(format!("cannot start it: {e}")))?;
        let mut line = String::new();
        let read = match child.stdout.take() {
            Some(out) => io::BufReader::new(out).read_line(&mut line),
            None => Ok(0),
        };
        let ready = read.and_then(|_| Ok(serde_json::from_str::<Ready>(&line)?));
        let why = match ready {
            Ok(Ready::Serving { pid }) => {
                let start = start_time(pid).unwrap_or(0);
                return Ok(Shim { pid, start, sandbox, socket: dir.join("shim.sock"), child: Mutex::new(Some(child)) });
            }
            Ok(Ready::Failed { why }) => why,
            Err(e) => format!("it died at its start: {e}"),
        };
        let _ = child.kill();
        let _ = child.wait();
        Err(failed(why))
    }

    /// One that an earlier runtime started; `None`: it is gone.
    pub fn adopt(sandbox: &str, dir: &Path, pid: i32, start: u64) -> Option<Self> {
        if pid <= 0 || !alive(pid) || start_time(pid) != Some(start) {
            return None;
        }
        let socket = dir.join("shim.sock");
        fdpass::connect(&socket).ok()?;
        Some(Shim { pid, start, sandbox: sandbox.into(), socket, child: Mutex::new(None) })
    }

    /// Takes note of its end, so that it leaves no zombie. Blocks until it ended.
    pub fn reap(&self) {
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.wait();
        }
    }

    pub fn failed(&self, why: impl ToString) -> RuntimeError {
        RuntimeError::Shim { sandbox: self.sandbox.clone(), why: why.to_string() }
    }

    pub async fn connect(&self) -> Result<Connection> {
        let stream = fdpass::connect(&self.socket).map_err(|e| self.failed(e))?;
        stream.set_nonblocking(true).map_err(|e| self.failed(e))?;
        let stream = UnixStream::from_std(stream).map_err(|e| self.failed(e))?;
        Ok(Connection { stream, input: vec![], fds: vec![] })
    }

    /// One request, one answer.
    pub async fn call(&self, request: &Request) -> Result<Response> {
        let mut connection = self.connect().await?;
        let asked = async {
            connection.send(request, &[]).await?;
            connection.next().await
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(Some(Response::Failed { why }))) => Err(self.failed(why)),
            Ok(Ok(Some(response))) => Ok(response),
            Ok(Ok(None)) => Err(self.failed("it hung up")),
            Ok(Err(e)) => Err(self.failed(e)),
            Err(_) => Err(self.failed("it does not answer")),
        }
    }
}

trait Arg0 {
    fn arg0_name(&mut self, name: &str) -> &mut Self;
}

impl Arg0 for Command {
    fn arg0_name(&mut self, name: &str) -> &mut Self {
        use std::os::unix::process::CommandExt;
        self.arg0(name)
    }
}

/// A conversation with the shim; descriptors that come are kept until taken.
pub struct Connection {
    pub stream: UnixStream,
    input: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Connection {
    /// Sends the request, the descriptors with its first byte.
    pub async fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        use tokio::io::AsyncWriteExt;
        let bytes = protocol::encode(request)?;
        if fds.is_empty() {
            return self.stream.write_all(&bytes).await;
        }
        self.stream.writable().await?;
        // The socket is fresh: it takes the first byte at once.
        fdpass::send(self.stream.as_fd(), &bytes[..1], fds)?;
        self.stream.write_all(&bytes[1..]).await
    }

    /// The next answer; `None`: the shim hung up.
    pub async fn next(&mut self) -> io::Result<Option<Response>> {
        loop {
            if let Some(response) = protocol::take(&mut self.input)? {
                return Ok(Some(response));
            }
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        loop {
            self.stream.readable().await?;
            // On the stack, not with the task, of which there is one for each pod.
            let receive = || {
                let mut buffer = [0; 16 << 10];
                let (n, fds) = fdpass::receive(&self.stream, &mut buffer)?;
                self.input.extend_from_slice(&buffer[..n]);
                self.fds.extend(fds);
                Ok(n)
            };
            match self.stream.try_io(Interest::READABLE, receive) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    /// What is left when frames begin.
    pub fn into_parts(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.input)
    }
}
