//! Who is asking, and may they: authenticators (client certificates, service-account tokens) and the authorizers that decide
//! from memory: RBAC and its bootstrap policy, nodes, policies of a file. It knows neither HTTP nor storage: the API server
//! feeds it certificates, tokens and RBAC objects.

pub mod abac;
pub mod attributes;
pub mod bootstrap;
pub mod certificate;
pub mod escalation;
pub mod fixed;
pub mod node;
pub mod rbac;
pub mod review;
pub mod rule;
pub mod token;

pub use attributes::*;
pub use rbac::Rbac;
