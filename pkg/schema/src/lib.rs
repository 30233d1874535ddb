//! The structural-schema engine: pure functions over `(value, schema)`. It knows no particular kind; built-in kinds bring
//! their schema from committed facts (`facts`), CRDs from their OpenAPI schema, and both are the same [`types::Object`].

pub mod types;
