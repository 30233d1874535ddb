//! Validation that several kinds share: pod templates, resources, volumes, selectors, references.
//!
//! Invariant: causes, fields and messages are upstream's (`pkg/apis/core/validation`).
