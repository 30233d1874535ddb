//! The house rules as tests: see `tests/house.rs` and `../layers.toml`. No code of its own.
