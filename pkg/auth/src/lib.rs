//! Who is asking, and may they: authenticators (client certificates, service-account tokens), the RBAC evaluator and its
//! bootstrap policy. It knows neither HTTP nor storage: the API server feeds it certificates, tokens and RBAC objects.

pub mod attributes;
pub mod bootstrap;
pub mod certificate;
pub mod escalation;
pub mod node;
pub mod rbac;
pub mod review;
pub mod rule;
pub mod token;
pub mod union;

pub use attributes::*;
pub use rbac::Rbac;
