//! The structural-schema engine: pure functions over `(value, schema)`. It knows no particular kind; built-in kinds bring
//! their schema from committed facts (`facts`), CRDs from their OpenAPI schema (`structural`), and both are the same [`types::Object`].
//!
//! Values are `serde_json::Value`. A write goes through `json::decode` or `proto::decode`, `json::canonicalize`,
//! `default::apply` and, of custom resources, `validate::against`; patches (`patch`) make a new value from an old one.

pub mod default;
pub mod facts;
pub mod json;
pub mod managed;
pub mod patch;
pub mod proto;
pub mod scalar;
pub mod structural;
pub mod types;
pub mod validate;
pub mod walk;
pub mod yaml;
