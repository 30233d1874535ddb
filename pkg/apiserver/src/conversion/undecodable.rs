//! An object that cannot be had in the version that a request wants, as upstream answers it (`storage/etcd3`).

use crate::cache::entry::Entry;
use isopod_api::{Cause, Details, Status};
use isopod_kinds::Kind;

/// Which object, and why.
pub struct Undecodable {
    /// `/<group>/<resource>/<namespace>/<name>`.
    key: String,
    revision: i64,
    why: String,
}

impl Undecodable {
    pub fn new(kind: &Kind, entry: &Entry, why: String) -> Self {
        Undecodable { key: format!("/{}/{}", kind.storage.prefix, entry.key), revision: entry.revision(), why }
    }

    fn message(&self, root: &str) -> String {
        let Undecodable { key, revision, why } = self;
        format!(
            "StorageError: corrupt object, Code: 7, Key: {root}{key}, ResourceVersion: 0, AdditionalErrorMsg: object not decodable revision={revision}: {why}"
        )
    }

    /// To who reads it alone.
    pub fn of_object(&self) -> Status {
        Status::internal(self.message(""))
    }

    /// To who reads it among others.
    pub fn of_list(&self, kind: &Kind) -> Status {
        let root = "/registry";
        let message = self.message(root);
        let told = format!("failed to read one or more {} from the storage: {message}", kind.gvr().qualified());
        let mut status = Status::new(500, "StorageReadError", told);
        status.details = Some(Details {
            name: "list".to_owned(),
            group: kind.gvk.group.clone(),
            kind: kind.resource.clone(),
            causes: vec![Cause {
                reason: "UnexpectedServerResponse".to_owned(),
                message,
                field: format!("{root}{}", self.key),
            }],
            ..Details::default()
        });
        status
    }
}
