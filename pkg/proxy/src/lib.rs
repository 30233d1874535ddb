//! The service proxy of a node: services and endpoint slices in, nftables out.
//!
//! Start reading at [`plan`], which says what one service needs of this node, as rows; [`state`] holds the rows of all
//! services and tells what changed; [`table`] puts rows into nftables; [`run`] is the loop over them.
//!
//! Rows are elements of a few maps, not chains and rules of their own: a new service is a handful of elements in one small
//! atomic batch, however many services there are. Chains exist for each *class* of traffic (what is masqueraded, the
//! number of endpoints, session affinity), shared by all services of the class. The stock `nft` (from 1.0.6) lists the
//! table, and takes its own listing back: [`table`] says what that asks of the layout.
//!
//! Session affinity holds at each front: a client that uses both a service's cluster IP and its node port may keep one
//! endpoint at each. Not done: `loadBalancerSourceRanges` (a load balancer's IP takes connections from anywhere) and
//! `healthCheckNodePort` (balancers cannot ask whether this node has endpoints).
//!
//! Invariants: the table is this process's alone and holds exactly the rows of the state; every change is one batch that
//! happens or does not; after any failure the table is replaced as a whole. Nothing here knows pods' containers or runs
//! another program.

pub mod config;
pub mod plan;
mod run;
pub mod select;
mod stale;
pub mod state;
pub mod table;

pub use config::{HostPort, HostPorts, LocalOverride, NodePortAddresses, ProxyConfig};
pub use run::{Proxy, ProxyError, Statistics};
