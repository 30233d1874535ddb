//! Kubernetes' protobuf form, byte for byte as Go's generated code writes it: fields by number, maps by key, every
//! field that is no pointer is written even when it is zero, and structs that JSON inlines are messages of their own.
//!
//! The functions here know messages; [`envelope`] knows the `k8s\0` frame around them. `apiVersion` and `kind` are not part of
//! a message, they stand in the frame.

mod backward;
mod decode;
mod encode;
pub mod envelope;
mod layout;
mod tape;
pub mod wire;

pub use decode::decode;
pub use encode::{Encoder, encode, watch_frame};
pub use layout::Layout;

/// Why bytes are not a message of this schema. Texts are those of Go's generated code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    #[error("unexpected EOF")]
    UnexpectedEof,
    #[error("proto: integer overflow")]
    IntegerOverflow,
    #[error("proto: unexpected end of group")]
    UnexpectedEndOfGroup,
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u8),
    #[error("proto: illegal tag {tag} (wire type {wire_type})")]
    IllegalTag { tag: u64, wire_type: u8 },
    #[error("proto: wrong wireType = {wire_type} for field {field}")]
    WrongWireType { wire_type: u8, field: String },
    #[error("proto: exceeded max depth")]
    TooDeep,
    #[error(transparent)]
    Quantity(#[from] isopod_api::quantity::QuantityError),
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoPrefix,
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind { api_version: String, kind: String },
}
