//! What the runtime and a pod's shim say to each other over the shim's unix socket.
//!
//! A message is a length (four bytes, little endian) and that many bytes of JSON. A connection carries one request and its
//! answers; `exec` and `attach` keep it open. Descriptors (an exec's stdio, a terminal's master) travel beside the message
//! as `SCM_RIGHTS`. Invariant: nothing here does more I/O than one message, and nothing depends on an async runtime.

pub mod frame;

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Longer messages are a protocol error: a process spec with a large environment stays far below.
pub const MAX_MESSAGE: usize = 8 << 20;

/// What a shim is started with, as JSON in `shim.json` of its directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimConfig {
    pub sandbox_id: String,
    pub hostname: String,
    /// Make new namespaces; `false`: the host's.
    pub new_network: bool,
    pub new_ipc: bool,
    pub new_uts: bool,
    /// One process namespace for the pod, with a first process of the shim's.
    pub shared_pid: bool,
    pub sysctls: Vec<(String, String)>,
    /// The cgroup (below the controllers' roots) that the shim itself moves into.
    pub cgroup: String,
    /// The process that starts it. Until its first request comes the shim dies with it: nobody knows of the shim yet.
    pub parent: i32,
}

/// What the shim writes to its stdout, one line, when it serves (or fails to).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ready {
    Serving { pid: i32 },
    Failed { why: String },
}

/// The layers of a root file system, to be mounted for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// The directory that `lowers` are relative to: short names keep many layers within a mount's one page of options.
    pub layers: PathBuf,
    /// Topmost first.
    pub lowers: Vec<String>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Where to mount it: on a private mount, so that it is seen by the container alone.
    pub target: PathBuf,
    /// Made in it if it is missing.
    pub working_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
}

/// A device rule, cgroup v1 words: `c 1:3 rwm`. `None`: any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// `b`, `c` or `a`.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Of `r`, `w`, `m`.
    pub access: String,
}

/// Starts a container: mounts its root, creates it and runs its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub id: String,
    /// Holds `config.json` (OCI runtime spec); the shim writes `exit.json` there.
    pub bundle: PathBuf,
    /// Where libcontainer keeps its state.
    pub state_root: PathBuf,
    pub rootfs: Rootfs,
    /// Made before, with its limits; device rules are applied by the shim.
    pub cgroup: String,
    /// `None`: any device (privileged).
    pub devices: Option<Vec<DeviceRule>>,
    /// The process's user, who owns its standard streams.
    pub uid: u32,
    /// Propagation of mounts, by path in the container.
    pub propagation: Vec<(PathBuf, Propagation)>,
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    pub id: String,
    /// An OCI `process`.
    pub process: serde_json::Value,
    /// The container's seccomp profile (OCI `linux.seccomp`).
    pub seccomp: Option<serde_json::Value>,
    pub cgroup: String,
    /// With a terminal no stdio is sent; the answer brings the terminal's master.
    pub tty: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Start(Box<Start>),
    /// Three descriptors (stdin, stdout, stderr) follow unless it has a terminal. Answered twice: started, exited. On the
    /// same connection `SignalExec` may follow.
    Exec(Box<Exec>),
    SignalExec {
        signal: i32,
    },
    /// To the container's main process, or to all of its processes.
    Kill {
        id: String,
        signal: i32,
        all: bool,
    },
    /// After the answer the connection carries [`frame`]s.
    Attach {
        id: String,
    },
    Resize {
        id: String,
        width: u16,
        height: u16,
    },
    ReopenLog {
        id: String,
    },
    State,
    /// Answered at once, then with each [`Event`] as it happens.
    Subscribe,
    /// Forgets an ended container.
    Forget {
        id: String,
    },
    /// Kills what still runs and ends the shim.
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Response {
    Done,
    /// For `Start` and `Exec`.
    Started {
        pid: i32,
    },
    /// The second answer to `Exec`.
    Exited(Exit),
    State {
        containers: Vec<Container>,
        /// The first process of a shared process namespace.
        pid1: Option<i32>,
    },
    Event(Event),
    NotFound,
    Failed {
        why: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128 + signal when a signal ended it.
    pub code: i32,
    pub signal: Option<i32>,
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub oom_killed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    pub pid: i32,
    pub exit: Option<Exit>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Exited { id: String, exit: Exit },
}

/// Encodes one message with its length.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, message).map_err(io::Error::from)?;
    let length = u32::try_from(out.len() - 4).map_err(|_| io::ErrorKind::InvalidInput)?;
    out[..4].copy_from_slice(&length.to_le_bytes());
    Ok(out)
}

pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// Reads one message; `None` at the end of the stream.
pub fn read<T: for<'a> Deserialize<'a>>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Takes one whole message off the front of `buffer`, if it is there.
pub fn take<T: for<'a> Deserialize<'a>>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(header) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*header) as usize;
    if length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[4..4 + length])?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_being_cut_at_any_byte() {
        let sent = Request::Kill { id: "c".into(), signal: 15, all: false };
        let bytes = encode(&sent).unwrap();
        for cut in 0..bytes.len() {
            let mut buffer = bytes[..cut].to_vec();
            assert!(take::<Request>(&mut buffer).unwrap().is_none(), "cut at {cut}");
            buffer.extend_from_slice(&bytes[cut..]);
            assert_eq!(take::<Request>(&mut buffer).unwrap().as_ref(), Some(&sent));
            assert!(buffer.is_empty());
        }
        assert_eq!(read::<Request>(&mut bytes.as_slice()).unwrap(), Some(sent));
        assert_eq!(read::<Request>(&mut [].as_slice()).unwrap(), None);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
        let mut huge = u32::MAX.to_le_bytes().to_vec();
        assert!(take::<Request>(&mut huge).is_err());
        assert!(read::<Request>(&mut huge.as_slice()).is_err());
    }
}
