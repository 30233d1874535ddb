//! A client's connection: requests in, answers and (once attached) output frames out.

use isopod_shim_protocol::frame::{self, Stream};
use isopod_shim_protocol::{Request, Response, encode, take};
use isopod_sys::fdpass;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// More than this waiting for a client pauses what feeds it …
const HIGH_WATER: usize = 256 << 10;
/// … for so long, if the client reads nothing at all. Then it is dropped: a lost viewer must not stop a container.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a connection has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    Requests,
    Subscribed,
    Attached(String),
    /// The process id of the exec, once it has one.
    Exec(Option<i32>),
}

pub struct Client {
    pub socket: UnixStream,
    pub mode: Mode,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    output: Vec<u8>,
    progress: Instant,
    /// Ends when all output is sent.
    pub closing: bool,
}

impl Client {
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (input, fds, output) = (vec![], vec![], vec![]);
        Ok(Client { socket, mode: Mode::Requests, input, fds, output, progress: Instant::now(), closing: false })
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Is it to be waited for?
    pub fn is_full(&self) -> bool {
        self.output.len() > HIGH_WATER
    }

    pub fn is_lost(&self) -> bool {
        self.is_full() && self.progress.elapsed() > PATIENCE
    }

    /// Reads what is there. `false`: the client is gone.
    pub fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        match fdpass::receive(&self.socket, &mut buffer) {
            Ok((0, _)) => false,
            Ok((n, fds)) => {
                self.input.extend_from_slice(&buffer[..n]);
                self.fds.extend(fds);
                true
            }
            Err(e) => e.kind() == ErrorKind::WouldBlock,
        }
    }

    pub fn request(&mut self) -> io::Result<Option<Request>> {
        take(&mut self.input)
    }

    pub fn frame(&mut self) -> Result<Option<(Stream, Vec<u8>)>, frame::BadFrame> {
        frame::take(&mut self.input)
    }

    /// The descriptors that came with the request.
    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    pub fn answer(&mut self, response: &Response) {
        if let Ok(bytes) = encode(response) {
            self.send(&bytes);
        }
    }

    /// An answer with a descriptor. It is the first on its connection, so the socket has room for it.
    pub fn answer_with(&mut self, response: &Response, fd: &OwnedFd) -> io::Result<()> {
        fdpass::send(&self.socket, &encode(response)?, &[fd.as_fd()])
    }

    pub fn output(&mut self, stream: Stream, data: &[u8]) {
        let mut bytes = Vec::with_capacity(data.len() + 8);
        frame::encode(stream, data, &mut bytes);
        self.send(&bytes);
    }

    fn send(&mut self, bytes: &[u8]) {
        if self.output.is_empty() {
            self.progress = Instant::now();
        }
        self.output.extend_from_slice(bytes);
        self.flush();
    }

    /// Writes what the socket takes. `false`: the client is gone.
    pub fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(n) => {
                    self.output.drain(..n);
                    self.progress = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return e.kind() == ErrorKind::WouldBlock,
            }
        }
        self.output.shrink_to(HIGH_WATER);
        true
    }
}
