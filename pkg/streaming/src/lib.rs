//! Remote command (exec, attach) and port-forward streams as Kubernetes clients speak them: WebSocket channels
//! (`v5.channel.k8s.io` down to `channel.k8s.io`, binary and base64), SPDY/3.1 after `Upgrade: SPDY/3.1`, and SPDY inside a
//! WebSocket (`SPDY/3.1+portforward.k8s.io`).
//!
//! What only the server says (logs, watches) goes out over a WebSocket as messages: [`messages`].
//!
//! Start at [`remote_command::accept`] and [`port_forward::accept`]: each takes a request and answers the response to send and
//! the streams that it leads to.
//!
//! Invariants: nothing here knows containers or pods; no input from the wire makes this crate panic or buffer without bound;
//! a slow reader slows its peer down.

pub mod channel;
pub mod exit;
mod idle;
pub mod messages;
pub mod negotiate;
pub mod pipe;
pub mod port_forward;
pub mod remote_command;
pub mod spdy;
pub mod tunnel;
mod websocket;

pub use negotiate::Refusal;
pub use port_forward::{ForwardedPort, PortForward};
pub use remote_command::{Options, RemoteCommand, TerminalSize};
