//! The shim's loop: one thread that waits for clients, container output, helpers and ended children.

use crate::attach::{Client, Mode};
use crate::container::{Container, code};
use crate::log::{Stream, nanos};
use crate::spawn;
use isopod_shim_protocol::{self as protocol, Event, Exec, Exit, Request, Response, Start, frame};
use isopod_sys::cgroup::Hierarchies;
use isopod_sys::fdpass;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::SystemTime;

#[derive(Clone, Debug)]
enum Source {
    Signals,
    Listener,
    Client(u64),
    Output(String, Stream),
    Stdin(String),
    Helper(u64),
}

/// A helper at work, and who waits for it.
struct Helper {
    socket: UnixStream,
    pid: i32,
    input: Vec<u8>,
    fd: Option<OwnedFd>,
    client: u64,
    /// The container it starts; `None`: an exec.
    starts: Option<(String, bool)>,
}

pub struct Server {
    hierarchies: Hierarchies,
    listener: UnixListener,
    signals: SignalFd,
    pid1: Option<i32>,
    containers: BTreeMap<String, Container>,
    clients: BTreeMap<u64, Client>,
    helpers: BTreeMap<u64, Helper>,
    /// Execs that run: process id → who waits.
    execs: BTreeMap<i32, u64>,
    /// Children that ended before their helper said what they are.
    unclaimed: Vec<(i32, WaitStatus)>,
    next: u64,
    /// Somebody has asked it something.
    known: bool,
    ending: bool,
}

impl Server {
    pub fn new(hierarchies: Hierarchies, listener: UnixListener, pid1: Option<i32>) -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        // A signal to the process group of whoever started us is not for us.
        for s in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE] {
            set.add(s);
        }
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        listener.set_nonblocking(true)?;
        Ok(Server {
            hierarchies,
            listener,
            signals,
            pid1,
            containers: BTreeMap::new(),
            clients: BTreeMap::new(),
            helpers: BTreeMap::new(),
            execs: BTreeMap::new(),
            unclaimed: vec![],
            next: 0,
            known: false,
            ending: false,
        })
    }

    /// Until `Shutdown`.
    pub fn run(&mut self) -> io::Result<()> {
        while !(self.ending && self.clients.values().all(|c| !c.has_output())) {
            for source in self.ready()? {
                self.handle(source);
            }
            self.clients.retain(|_, c| !(c.is_lost() || (c.closing && !c.has_output())));
        }
        Ok(())
    }

    /// Waits until something is.
    fn ready(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        let mut slow = false;
        for (id, c) in &self.containers {
            let mut watching = self.clients.values().filter(|k| k.mode == Mode::Attached(id.clone()));
            let paused = watching.any(Client::is_full);
            slow |= paused;
            for (stream, file) in [(Stream::Stdout, &c.stdout), (Stream::Stderr, &c.stderr)] {
                if let Some(file) = file.as_ref().filter(|_| !paused) {
                    fds.push(PollFd::new(file.as_fd(), PollFlags::POLLIN));
                    sources.push(Source::Output(id.clone(), stream));
                }
            }
            if let Some(stdin) = c.stdin.as_ref().filter(|_| c.wants_stdin()) {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
                sources.push(Source::Stdin(id.clone()));
            }
        }
        for (token, c) in &self.clients {
            let mut flags = PollFlags::empty();
            let full = matches!(&c.mode, Mode::Attached(id) if self.containers.get(id).is_some_and(Container::is_full));
            flags.set(PollFlags::POLLIN, !full);
            flags.set(PollFlags::POLLOUT, c.has_output());
            fds.push(PollFd::new(c.socket.as_fd(), flags));
            sources.push(Source::Client(*token));
        }
        for (token, h) in &self.helpers {
            fds.push(PollFd::new(h.socket.as_fd(), PollFlags::POLLIN));
            sources.push(Source::Helper(*token));
        }
        let timeout = if slow { PollTimeout::from(1000u16) } else { PollTimeout::NONE };
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => return Ok(vec![]),
            other => other?,
        };
        let ready = fds.iter().zip(sources).filter(|(fd, _)| fd.revents().is_none_or(|r| !r.is_empty()));
        Ok(ready.map(|(_, source)| source).collect())
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Signals => self.reap(),
            Source::Listener => {
                if let Ok((socket, _)) = self.listener.accept()
                    && let Ok(client) = Client::new(socket)
                {
                    self.next += 1;
                    self.clients.insert(self.next, client);
                }
            }
            Source::Client(token) => self.serve(token),
            Source::Output(id, stream) => {
                self.forward(&id, stream);
            }
            Source::Stdin(id) => {
                if let Some(c) = self.containers.get_mut(&id) {
                    c.flush_stdin();
                }
            }
            Source::Helper(token) => self.hear(token),
        }
    }

    fn serve(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let open = client.flush() && client.fill();
        loop {
            let Some(client) = self.clients.get_mut(&token) else { return };
            let more = if let Mode::Attached(id) = &client.mode {
                let id = id.clone();
                match client.frame() {
                    Ok(Some((stream, data))) => {
                        self.input(&id, stream, &data);
                        Ok(true)
                    }
                    Ok(None) => Ok(false),
                    Err(_) => Err(()),
                }
            } else {
                match client.request() {
                    Ok(Some(request)) => {
                        self.obey(token, request);
                        Ok(true)
                    }
                    Ok(None) => Ok(false),
                    Err(_) => Err(()),
                }
            };
            match more {
                Ok(true) => {}
                Ok(false) if open => return,
                _ => {
                    self.clients.remove(&token);
                    return;
                }
            }
        }
    }

    fn obey(&mut self, token: u64, request: Request) {
        if !self.known {
            // It never fails for no signal at all.
            self.known = crate::serve::outlive_parent().is_ok();
        }
        let answer = match request {
            Request::Start(start) => self.start(token, &start),
            Request::Exec(exec) => self.exec(token, &exec),
            Request::SignalExec { signal } => self.signal_exec(token, signal),
            Request::Kill { id, signal, all } => Some(self.kill(&id, signal, all)),
            Request::Attach { id } => Some(self.attach(token, id)),
            Request::Resize { id, width, height } => Some(self.with(&id, |c| c.resize(width, height))),
            Request::ReopenLog { id } => Some(match self.containers.get_mut(&id).map(|c| c.log.reopen()) {
                Some(Ok(())) => Response::Done,
                Some(Err(e)) => Response::Failed { why: e.to_string() },
                None => Response::NotFound,
            }),
            Request::State => Some(self.state()),
            Request::Subscribe => {
                self.set_mode(token, Mode::Subscribed);
                Some(self.state())
            }
            Request::Forget { id } => {
                if self.containers.get(&id).is_some_and(|c| c.exit.is_some()) {
                    self.containers.remove(&id);
                }
                Some(Response::Done)
            }
            Request::Shutdown => {
                self.shut_down();
                Some(Response::Done)
            }
        };
        if let (Some(answer), Some(client)) = (answer, self.clients.get_mut(&token)) {
            client.answer(&answer);
        }
    }

    fn with(&mut self, id: &str, f: impl FnOnce(&mut Container)) -> Response {
        match self.containers.get_mut(id) {
            Some(c) => {
                f(c);
                Response::Done
            }
            None => Response::NotFound,
        }
    }

    fn set_mode(&mut self, token: u64, mode: Mode) {
        if let Some(c) = self.clients.get_mut(&token) {
            c.mode = mode;
        }
    }

    fn state(&self) -> Response {
        let containers = self
            .containers
            .iter()
            .filter_map(|(id, c)| Some(protocol::Container { id: id.clone(), pid: c.pid?, exit: c.exit.clone() }));
        Response::State { containers: containers.collect(), pid1: self.pid1 }
    }

    fn start(&mut self, token: u64, start: &Start) -> Option<Response> {
        let failed = |e: io::Error| Some(Response::Failed { why: e.to_string() });
        if self.containers.contains_key(&start.id) {
            return Some(Response::Failed { why: format!("container {} was started before", start.id) });
        }
        let (container, stdio) = match Container::new(start) {
            Ok(made) => made,
            Err(e) => return failed(e),
        };
        let spawned = protocol::encode(start).and_then(|request| self.help("start", stdio, &request, token));
        match spawned {
            Ok(helper) => {
                helper.starts = Some((start.id.clone(), start.stdin));
                self.containers.insert(start.id.clone(), container);
                None
            }
            Err(e) => failed(e),
        }
    }

    fn exec(&mut self, token: u64, exec: &Exec) -> Option<Response> {
        let failed = |why: &str| Some(Response::Failed { why: why.into() });
        let Some(container) = self.containers.get(&exec.id) else { return Some(Response::NotFound) };
        let (Some(pid), None) = (container.pid, &container.exit) else { return failed("the container is not running") };
        let mut fds = self.clients.get_mut(&token).map(Client::take_fds).unwrap_or_default().into_iter();
        let stdio = match (exec.tty, fds.next(), fds.next(), fds.next()) {
            (true, ..) => spawn::null(),
            (false, Some(i), Some(o), Some(e)) => Ok([i, o, e]),
            _ => return failed("an exec without a terminal needs three descriptors"),
        };
        let request = protocol::encode(&(exec, pid));
        match stdio.and_then(|stdio| self.help("exec", stdio, &request?, token).map(drop)) {
            Ok(()) => {
                self.set_mode(token, Mode::Exec(None));
                None
            }
            Err(e) => failed(&e.to_string()),
        }
    }

    fn help(&mut self, role: &str, stdio: spawn::Stdio3, request: &[u8], client: u64) -> io::Result<&mut Helper> {
        let (socket, child) = spawn::helper(role, stdio, request)?;
        socket.set_nonblocking(true)?;
        self.next += 1;
        let helper = Helper { socket, pid: child.id() as i32, input: vec![], fd: None, client, starts: None };
        Ok(self.helpers.entry(self.next).or_insert(helper))
    }

    /// Takes what a helper says.
    fn hear(&mut self, token: u64) {
        let Some(helper) = self.helpers.get_mut(&token) else { return };
        let mut buffer = [0; 4096];
        let response = match fdpass::receive(&helper.socket, &mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Ok((n, fds)) if n > 0 => {
                helper.input.extend_from_slice(&buffer[..n]);
                helper.fd = fds.into_iter().next().or(helper.fd.take());
                match protocol::take::<Response>(&mut helper.input) {
                    Ok(None) => return,
                    Ok(Some(r)) => r,
                    Err(e) => Response::Failed { why: e.to_string() },
                }
            }
            _ => Response::Failed { why: "the helper died (was it killed for want of memory?)".into() },
        };
        let Some(helper) = self.helpers.remove(&token) else { return };
        match &helper.starts {
            Some((id, stdin)) => self.started(id, *stdin, helper.client, response, helper.fd),
            None => self.exec_started(helper.client, response, helper.fd),
        }
        self.claim();
    }

    fn started(&mut self, id: &str, stdin: bool, client: u64, response: Response, master: Option<OwnedFd>) {
        match response {
            Response::Started { pid } => {
                if let Some(c) = self.containers.get_mut(id) {
                    c.pid = Some(pid);
                    if let Some(master) = master {
                        let _ = c.take_terminal(master, stdin);
                    }
                }
            }
            _ => {
                self.containers.remove(id);
            }
        }
        if let Some(c) = self.clients.get_mut(&client) {
            c.answer(&response);
        }
    }

    fn exec_started(&mut self, client: u64, response: Response, master: Option<OwnedFd>) {
        if let Response::Started { pid } = response {
            self.execs.insert(pid, client);
            self.set_mode(client, Mode::Exec(Some(pid)));
        }
        let Some(c) = self.clients.get_mut(&client) else { return };
        match master {
            Some(master) => {
                if c.answer_with(&response, &master).is_err() {
                    c.closing = true;
                }
            }
            None => c.answer(&response),
        }
    }

    /// Ends of children that are known by now.
    fn claim(&mut self) {
        for (pid, status) in std::mem::take(&mut self.unclaimed) {
            self.child_ended(pid, status);
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { return };
            self.child_ended(pid.as_raw(), status);
        }
    }

    fn child_ended(&mut self, pid: i32, status: WaitStatus) {
        // A helper's word comes before its end.
        if let Some(token) = self.helpers.iter().find(|(_, h)| h.pid == pid).map(|(t, _)| *t) {
            self.hear(token);
            return;
        }
        if let Some(client) = self.execs.remove(&pid) {
            let (code, signal) = code(status);
            let exit = Exit { code, signal, at: nanos(SystemTime::now()), oom_killed: false };
            if let Some(c) = self.clients.get_mut(&client) {
                c.answer(&Response::Exited(exit));
                c.closing = true;
            }
            return;
        }
        match self.containers.iter().find(|(_, c)| c.pid == Some(pid) && c.exit.is_none()).map(|(id, _)| id.clone()) {
            Some(id) => self.container_ended(&id, status),
            None if !self.helpers.is_empty() => self.unclaimed.push((pid, status)),
            None => {}
        }
    }

    fn container_ended(&mut self, id: &str, status: WaitStatus) {
        // What it wrote before its end is in the pipes already.
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.forward(id, stream) {}
        }
        let Some(c) = self.containers.get_mut(id) else { return };
        let exit = c.ended(status, &self.hierarchies);
        let event = Response::Event(Event::Exited { id: id.to_owned(), exit });
        for client in self.clients.values_mut() {
            match &client.mode {
                Mode::Subscribed => client.answer(&event),
                Mode::Attached(to) if to == id => client.closing = true,
                _ => {}
            }
        }
    }

    /// Moves some output to the log and to who is attached. `false`: there is no more now.
    fn forward(&mut self, id: &str, stream: Stream) -> bool {
        let Some(data) = self.containers.get_mut(id).and_then(|c| c.read(stream)) else { return false };
        if data.is_empty() {
            return false;
        }
        let to = match stream {
            Stream::Stdout => frame::Stream::Stdout,
            Stream::Stderr => frame::Stream::Stderr,
        };
        for client in self.clients.values_mut().filter(|c| matches!(&c.mode, Mode::Attached(a) if a == id)) {
            client.output(to, &data);
        }
        true
    }

    fn attach(&mut self, token: u64, id: String) -> Response {
        match self.containers.get(&id) {
            Some(c) if c.exit.is_none() => {
                self.set_mode(token, Mode::Attached(id));
                Response::Done
            }
            Some(_) => Response::Failed { why: "the container is not running".into() },
            None => Response::NotFound,
        }
    }

    fn input(&mut self, id: &str, stream: frame::Stream, data: &[u8]) {
        let Some(c) = self.containers.get_mut(id) else { return };
        match stream {
            frame::Stream::Stdin => c.feed(data),
            frame::Stream::StdinClosed => c.end_stdin(),
            frame::Stream::Resize => {
                if let Some((width, height)) = frame::size(data) {
                    c.resize(width, height);
                }
            }
            frame::Stream::Stdout | frame::Stream::Stderr => {}
        }
    }

    fn signal_exec(&mut self, token: u64, signal: i32) -> Option<Response> {
        if let Some(Mode::Exec(Some(pid))) = self.clients.get(&token).map(|c| &c.mode)
            && self.execs.contains_key(pid)
        {
            let _ = isopod_sys::process::signal(*pid, signal);
        }
        // The next word on this connection is how it ended.
        None
    }

    fn kill(&mut self, id: &str, signal: i32, all: bool) -> Response {
        let Some(c) = self.containers.get(id) else { return Response::NotFound };
        if c.exit.is_some() {
            return Response::Done;
        }
        let sent = if all {
            self.hierarchies.group(&c.cgroup).and_then(|g| g.signal(signal))
        } else {
            c.pid.map_or(Ok(()), |pid| isopod_sys::process::signal(pid, signal))
        };
        match sent {
            Ok(()) => Response::Done,
            Err(e) => Response::Failed { why: e.to_string() },
        }
    }

    fn shut_down(&mut self) {
        let live: Vec<String> =
            self.containers.iter().filter(|(_, c)| c.exit.is_none()).map(|(id, _)| id.clone()).collect();
        for id in live {
            self.kill(&id, Signal::SIGKILL as i32, true);
            let Some(pid) = self.containers.get(&id).and_then(|c| c.pid) else { continue };
            let _ = isopod_sys::process::signal(pid, Signal::SIGKILL as i32);
            if let Ok(status) = waitpid(Pid::from_raw(pid), None) {
                self.container_ended(&id, status);
            }
        }
        if let Some(pid1) = self.pid1 {
            let _ = isopod_sys::process::signal(pid1, Signal::SIGKILL as i32);
        }
        self.ending = true;
    }
}
