//! The API server: a registry of kinds, one request pipeline, a watch cache, admission, discovery, and the nodes' tunnel.
//!
//! Where to start: [`chain`] is what every request passes through, [`pipeline`] the only write path, [`cache`] what reads and
//! watches are served from.
//!
//! Invariants:
//! - Built-in and custom kinds take the same path; no handler knows a particular resource, except those of subresources and
//!   plugins that are about one.
//! - Bytes first: reads copy cached bytes; a parsed object lives only inside a request that changes or transforms it.
//! - Fresh reads: a write that was acknowledged is seen by the next get or list.
//! - It knows no controllers and no nodes beyond the tunnel.

mod access;
mod admission;
mod adopt;
mod aggregation;
mod allocate;
pub mod audit;
mod authn;
pub mod authorization;
mod cache;
mod callout;
mod candidate;
mod chain;
mod compaction;
pub mod component_status;
mod config;
mod config_file;
mod connection;
mod conversion;
mod deadline;
mod definitions;
mod deletion;
mod discovery;
mod encode;
mod exposition;
mod fairness;
mod health;
mod identity;
mod impersonate;
mod lasting;
mod legacy_tokens;
mod metadata;
mod metrics;
mod nonresource;
mod objects;
mod openapi;
mod options;
mod ownership;
mod parsed;
mod pipeline;
mod registry;
mod reload;
mod remote;
mod request;
mod reviews;
mod server;
mod services;
mod stages;
mod subresources;
pub mod tokens;
mod tunnel;
mod unread;
mod verbs;
mod zpages;

pub use access::Access;
pub use adopt::{Adoption, Foreign};
pub use aggregation::{FrontProxy, RequestHeaders, Settings as AggregationSettings};
pub use authn::{Authenticator, ClientCertificate, PeerCertificates, Refused, bearer_token};
pub use config::Config;
pub use registry::Registry;
pub use server::{ApiServer, Service, StartError};
pub use tunnel::{Io, NodeDialer, Tunnels};
