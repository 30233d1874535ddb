//! What drives the store's own backends drives a remote store too.

#![allow(dead_code, reason = "not all of it is asked for here")]

#[path = "../../../store/src/testing/clients.rs"]
pub mod clients;
#[path = "../../../store/src/testing/convert.rs"]
pub mod convert;
