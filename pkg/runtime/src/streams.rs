//! Exec, attach and port-forward: processes in a container, and bytes to and from them.
//!
//! An exec's bytes do not pass through the shim: it gets the far ends of pipes, or gives back a terminal's master.

use crate::runtime::{IsopodRuntime, blocking, io_error};
use crate::shim::{Connection, Shim};
use crate::types::{BoxRead, BoxWrite, ExecOutput, NamespaceMode, Result, RuntimeError, Streams, TerminalSize};
use isopod_shim_protocol::frame::{self, Stream};
use isopod_shim_protocol::{Exec, Exit, Request, Response};
use isopod_sys::terminal;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What [`IsopodRuntime::run_exec_sync`] keeps of each stream.
const MAX_OUTPUT: usize = 16 << 10;
/// After a probe's process ended, children of it may hold its output open: so long is it followed. A terminal, too, once
/// nothing comes of it any more. The pipes of other execs are followed to their end, as containerd does.
const DRAIN: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(5);

/// A process that was started in a container.
struct Running {
    connection: Connection,
    shim: Arc<Shim>,
}

impl Running {
    async fn exit(&mut self) -> Result<Exit> {
        match self.connection.next().await {
            Ok(Some(Response::Exited(exit))) => Ok(exit),
            Ok(other) => Err(self.shim.failed(format!("unexpected end of the exec: {other:?}"))),
            Err(e) => Err(self.shim.failed(e)),
        }
    }

    async fn kill(&mut self) {
        let _ = self.connection.send(&Request::SignalExec { signal: nix::libc::SIGKILL }, &[]).await;
    }
}

impl IsopodRuntime {
    async fn begin_exec(
        &self,
        id: &str,
        cmd: Vec<String>,
        tty: bool,
        fds: &[OwnedFd],
    ) -> Result<(Running, Option<OwnedFd>)> {
        let (container, shim) = self.running(id)?;
        let (process, seccomp) = self.exec_process(id, cmd, tty)?;
        let exec = Exec { id: id.to_owned(), process, seccomp, cgroup: container.record.cgroup, tty };
        let mut connection = shim.connect().await?;
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        connection.send(&Request::Exec(Box::new(exec)), &borrowed).await.map_err(|e| shim.failed(e))?;
        match connection.next().await {
            Ok(Some(Response::Started { .. })) => {
                let master = connection.fds.pop();
                Ok((Running { connection, shim }, master))
            }
            Ok(Some(Response::Failed { why })) => Err(RuntimeError::StartContainer(why)),
            Ok(Some(Response::NotFound)) => Err(RuntimeError::NotRunning(id.into())),
            Ok(other) => Err(shim.failed(format!("unexpected answer to exec: {other:?}"))),
            Err(e) => Err(shim.failed(e)),
        }
    }

    /// The container's own process with another command.
    fn exec_process(&self, id: &str, cmd: Vec<String>, tty: bool) -> Result<(Value, Option<Value>)> {
        let path = self.paths.container(id).join("config.json");
        let spec: Option<Value> = crate::persist::read_json(&path).map_err(io_error("read the container's spec"))?;
        let mut spec = spec.ok_or_else(|| RuntimeError::NoSuchContainer(id.into()))?;
        let seccomp = spec["linux"].get_mut("seccomp").map(Value::take);
        let mut process = spec["process"].take();
        process["args"] = json!(cmd);
        process["terminal"] = json!(tty);
        if tty
            && let Some(env) = process["env"].as_array_mut()
            && !env.iter().any(|v| v.as_str().is_some_and(|v| v.starts_with("TERM=")))
        {
            env.push(json!("TERM=xterm"));
        }
        Ok((process, seccomp))
    }

    pub(crate) async fn run_exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        let failed = || io_error("make the exec's pipes");
        let null = File::open("/dev/null").map_err(failed())?;
        let (out_read, out_write) = io::pipe().map_err(failed())?;
        let (err_read, err_write) = io::pipe().map_err(failed())?;
        let far = [null.into(), out_write.into(), err_write.into()];
        let (mut running, _) = self.begin_exec(id, cmd, false, &far).await?;
        drop(far);
        let over = CancellationToken::new();
        let mut out = tokio::spawn(keep(receiver(out_read.into()).map_err(failed())?, over.clone()));
        let mut err = tokio::spawn(keep(receiver(err_read.into()).map_err(failed())?, over.clone()));
        let over = over.drop_guard();
        let exit = match timeout {
            None => running.exit().await?,
            Some(limit) => match tokio::time::timeout(limit, running.exit()).await {
                Ok(exit) => exit?,
                Err(_) => {
                    running.kill().await;
                    let _ = tokio::time::timeout(DRAIN, running.exit()).await;
                    return Err(RuntimeError::ExecTimeout(limit));
                }
            },
        };
        let kept = tokio::time::timeout(DRAIN, async { tokio::join!(&mut out, &mut err) }).await;
        let (stdout, stderr) = match kept {
            Ok(both) => both,
            Err(_) => {
                drop(over);
                tokio::join!(out, err)
            }
        };
        let (stdout, stderr) = (stdout.unwrap_or_default(), stderr.unwrap_or_default());
        Ok(ExecOutput { exit_code: exit.code, stdout, stderr })
    }

    pub(crate) async fn run_exec(&self, id: &str, cmd: Vec<String>, streams: Streams) -> Result<i32> {
        if streams.tty { self.exec_terminal(id, cmd, streams).await } else { self.exec_pipes(id, cmd, streams).await }
    }

    async fn exec_pipes(&self, id: &str, cmd: Vec<String>, streams: Streams) -> Result<i32> {
        let failed = || io_error("make the exec's pipes");
        let (in_read, in_write) = io::pipe().map_err(failed())?;
        let (out_read, out_write) = io::pipe().map_err(failed())?;
        let (err_read, err_write) = io::pipe().map_err(failed())?;
        let far = [in_read.into(), out_write.into(), err_write.into()];
        let (mut running, _) = self.begin_exec(id, cmd, false, &far).await?;
        drop(far);
        let input = match streams.stdin {
            Some(from) => {
                let to = pipe::Sender::from_owned_fd(in_write.into()).map_err(failed())?;
                Some(tokio::spawn(copy(from, Box::new(to))))
            }
            None => {
                drop(in_write);
                None
            }
        };
        let follow = |read: OwnedFd, to: Option<BoxWrite>| -> Result<tokio::task::JoinHandle<()>> {
            let from = receiver(read).map_err(failed())?;
            Ok(tokio::spawn(copy(Box::new(from), to.unwrap_or_else(|| Box::new(tokio::io::sink())))))
        };
        let out = follow(out_read.into(), streams.stdout)?;
        let err = follow(err_read.into(), streams.stderr)?;
        let exit = running.exit().await;
        if exit.is_ok() {
            // However long the client takes to read it: who hears of the end has heard everything.
            let _ = tokio::join!(out, err);
        }
        if let Some(input) = input {
            input.abort();
        }
        Ok(exit?.code)
    }

    async fn exec_terminal(&self, id: &str, cmd: Vec<String>, streams: Streams) -> Result<i32> {
        let (mut running, master) = self.begin_exec(id, cmd, true, &[]).await?;
        let master = master.ok_or_else(|| running.shim.failed("it sent no terminal"))?;
        let master = Arc::new(Terminal::new(master).map_err(io_error("use the exec's terminal"))?);
        let mut tasks = Vec::new();
        if let Some(mut resize) = streams.resize {
            let terminal = master.clone();
            tasks.push(tokio::spawn(async move {
                while let Some(TerminalSize { width, height }) = resize.recv().await {
                    let _ = terminal::resize(terminal.0.get_ref(), width, height);
                }
            }));
        }
        if let Some(stdin) = streams.stdin {
            tasks.push(tokio::spawn(master.clone().feed(stdin)));
        }
        let to = streams.stdout.unwrap_or_else(|| Box::new(tokio::io::sink()));
        let ended = CancellationToken::new();
        let out = tokio::spawn(master.clone().follow(to, ended.clone()));
        // The master goes with its last holder: the process sees the terminal hang up.
        drop(master);
        let exit = running.exit().await;
        ended.cancel();
        let _ = out.await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        Ok(exit?.code)
    }

    pub(crate) async fn join_streams(&self, id: &str, streams: Streams) -> Result<()> {
        let (container, shim) = self.running(id)?;
        let mut connection = shim.connect().await?;
        connection.send(&Request::Attach { id: id.to_owned() }, &[]).await.map_err(|e| shim.failed(e))?;
        match connection.next().await {
            Ok(Some(Response::Done)) => {}
            Ok(Some(Response::NotFound | Response::Failed { .. })) => return Err(RuntimeError::NotRunning(id.into())),
            Ok(other) => return Err(shim.failed(format!("unexpected answer to attach: {other:?}"))),
            Err(e) => return Err(shim.failed(e)),
        }
        let (stream, input) = connection.into_parts();
        let (from_shim, mut to_shim) = stream.into_split();
        let (frames, mut queue) = mpsc::channel::<Vec<u8>>(4);
        let mut tasks = vec![tokio::spawn(async move {
            while let Some(bytes) = queue.recv().await {
                if to_shim.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            // The write half stays open till the container ends: a closed one would end the attachment.
            std::future::pending::<()>().await;
        })];
        if let Some(stdin) = streams.stdin.filter(|_| container.record.config.stdin) {
            tasks.push(tokio::spawn(send_stdin(stdin, frames.clone())));
        }
        if let Some(mut resize) = streams.resize {
            let frames = frames.clone();
            tasks.push(tokio::spawn(async move {
                while let Some(size) = resize.recv().await {
                    let mut bytes = Vec::new();
                    frame::resize(size.width, size.height, &mut bytes);
                    if frames.send(bytes).await.is_err() {
                        return;
                    }
                }
            }));
        }
        let done = receive_output(from_shim, input, streams.stdout, streams.stderr).await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        done.map_err(|e| shim.failed(e))
    }

    pub(crate) async fn connect_in_sandbox(&self, sandbox: &str, port: u16) -> Result<tokio::net::TcpStream> {
        let entry = self.sandbox_entry(sandbox)?;
        let shim = entry.shim.ok_or_else(|| RuntimeError::NotRunning(sandbox.into()))?;
        let connect = move || -> io::Result<std::net::TcpStream> {
            let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            std::net::TcpStream::connect_timeout(&v4, CONNECT)
                .or_else(|e| std::net::TcpStream::connect_timeout(&v6, CONNECT).map_err(|_| e))
        };
        let host = entry.record.config.network == NamespaceMode::Node;
        let connected = blocking(move || -> io::Result<std::net::TcpStream> {
            let netns = format!("/proc/{}/ns/net", shim.pid);
            let stream =
                if host { connect()? } else { isopod_sys::process::in_network_namespace(Path::new(&netns), connect)? };
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        let stream = connected.await?.map_err(io_error(format!("connect to port {port} in the pod")))?;
        tokio::net::TcpStream::from_std(stream).map_err(io_error("use the connection"))
    }
}

fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(fd)
}

type Kept = Vec<u8>;

/// Reads to the end, or until it is over, keeping the start.
async fn keep(mut from: impl AsyncRead + Unpin, over: CancellationToken) -> Kept {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 8 << 10]);
    while let Some(Ok(n @ 1..)) = over.run_until_cancelled(from.read(&mut buffer)).await {
        kept.extend_from_slice(&buffer[..n.min(MAX_OUTPUT - kept.len())]);
    }
    kept
}

/// Copies, handing each piece on at once.
async fn copy(mut from: BoxRead, mut to: BoxWrite) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 || to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

async fn send_stdin(mut from: BoxRead, to: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = from.read(&mut buffer).await.unwrap_or(0);
        let mut bytes = Vec::new();
        let stream = if n == 0 { Stream::StdinClosed } else { Stream::Stdin };
        frame::encode(stream, &buffer[..n], &mut bytes);
        if to.send(bytes).await.is_err() || n == 0 {
            return;
        }
    }
}

/// Until the shim hangs up (the container ended) or the client does.
async fn receive_output(
    mut from: impl AsyncRead + Unpin,
    mut input: Vec<u8>,
    stdout: Option<BoxWrite>,
    stderr: Option<BoxWrite>,
) -> io::Result<()> {
    let sink = || Box::new(tokio::io::sink()) as BoxWrite;
    let (mut stdout, mut stderr) = (stdout.unwrap_or_else(sink), stderr.unwrap_or_else(sink));
    let mut buffer = vec![0; 16 << 10];
    loop {
        let bad = |_| io::Error::from(io::ErrorKind::InvalidData);
        while let Some((stream, data)) = frame::take(&mut input).map_err(bad)? {
            let to = if stream == Stream::Stderr { &mut stderr } else { &mut stdout };
            if to.write_all(&data).await.is_err() || to.flush().await.is_err() {
                return Ok(());
            }
        }
        match from.read(&mut buffer).await? {
            0 => break,
            n => input.extend_from_slice(&buffer[..n]),
        }
    }
    let _ = stdout.shutdown().await;
    let _ = stderr.shutdown().await;
    Ok(())
}

/// A terminal's master.
struct Terminal(AsyncFd<File>);

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        Ok(Terminal(terminal::watch(File::from(master))?))
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::io::Read;
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(done) = ready.try_io(|fd| fd.get_ref().read(buffer)) {
                return done;
            }
        }
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        use std::io::Write;
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(done) = ready.try_io(|fd| fd.get_ref().write(bytes)) {
                return done;
            }
        }
    }

    async fn feed(self: Arc<Self>, mut from: BoxRead) {
        let mut buffer = vec![0; 4 << 10];
        while let Ok(n) = from.read(&mut buffer).await {
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                match self.write(rest).await {
                    Ok(n) => rest = &rest[n..],
                    Err(_) => return,
                }
            }
            if n == 0 {
                return;
            }
        }
    }

    /// To the end, which a terminal tells as an error (EIO), or until it is silent after its process has `ended`.
    async fn follow(self: Arc<Self>, mut to: BoxWrite, ended: CancellationToken) {
        let mut buffer = vec![0; 16 << 10];
        let silence = || async {
            ended.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        loop {
            let n = tokio::select! {
                n = self.read(&mut buffer) => n.unwrap_or(0),
                () = silence() => 0,
            };
            if n == 0 || to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    }
}
