//! Databases that are not as this program left them: of older formats, cut off between two steps, damaged.

#![allow(clippy::unwrap_used)]

mod flips;
mod formats;
mod ground;
mod log;
mod rows;
