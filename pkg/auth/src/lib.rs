//! Who is asking, and may they: authenticators (client certificates, service-account tokens), the RBAC evaluator and its
//! bootstrap policy. It knows neither HTTP nor storage: the API server feeds it certificates, tokens and RBAC objects.

pub mod attributes;

pub use attributes::*;
