//! What is to be told and to be mended.

use super::state::{Address, Meta, Service};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;

/// Something that is not as it should be, for an Event.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub regarding: Value,
    pub controller: &'static str,
    pub reason: &'static str,
    pub action: &'static str,
    pub note: String,
}

impl Finding {
    /// The same as long as it is found, whatever else happens to the object.
    pub fn key(&self) -> String {
        let text = |field: &str| self.regarding[field].as_str().unwrap_or_default();
        format!("{} {} {} {}", text("uid"), text("name"), self.reason, self.note)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Mend {
    /// An address gets the object that it should have.
    Allocate { address: IpAddr, namespace: String, service: String },
    /// An object of an address goes, as it was seen.
    Free { address: String, uid: String },
    /// A port is its service's.
    Claim { port: u16, namespace: String, service: String },
    /// A port is nobody's.
    Release { port: u16 },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub findings: Vec<Finding>,
    pub mends: Vec<Mend>,
    /// When there may be something to do even if nothing changes.
    pub next: Option<Duration>,
}

impl Plan {
    pub fn join(&mut self, other: Plan) {
        self.findings.extend(other.findings);
        self.mends.extend(other.mends);
        other.next.into_iter().for_each(|wait| self.look_again(wait));
    }

    pub fn look_again(&mut self, wait: Duration) {
        self.next = Some(self.next.map_or(wait, |next| next.min(wait)));
    }
}

impl Service {
    pub fn regarding(&self) -> Value {
        let Meta { name, namespace, uid, .. } = &self.metadata;
        json!({"kind": "Service", "namespace": namespace, "name": name, "uid": uid, "apiVersion": "v1",
            "resourceVersion": self.revision.to_string()})
    }
}

impl Address {
    pub fn regarding(&self) -> Value {
        let Meta { name, uid, .. } = &self.metadata;
        json!({"kind": "IPAddress", "name": name, "uid": uid, "apiVersion": "networking.k8s.io/v1",
            "resourceVersion": self.revision.to_string()})
    }
}
