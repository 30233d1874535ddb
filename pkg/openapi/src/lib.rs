//! OpenAPI v2 and v3 documents, made from the registry of kinds and their schemas. Pure functions; no HTTP.
