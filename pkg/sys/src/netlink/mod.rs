//! Netlink without helpers: messages, sockets, and on top of them links, addresses, routes and sysctls of a network
//! namespace.
//!
//! The encoder is ours: the few message kinds that a node needs are a few hundred lines, and a generated binding of
//! every family would cost more code and memory than what it saves.
//!
//! Invariants: a request returns after the kernel's acknowledgement, and an error names what was asked, the kernel's
//! errno and, where it gives one, its own explanation. A socket belongs for ever to the namespace in which it was
//! opened, so one thread can drive several namespaces.

mod message;
mod namespace;
mod route;
mod socket;

pub use message::{Attributes, Writer};
pub use namespace::{NetNs, read_sysctl, set_sysctl};
pub use route::{Address, Bridge, Link, Route, RouteSocket, Veth};
pub(crate) use socket::{Ack, acks};
pub use socket::{NetlinkError, Protocol, Socket};
