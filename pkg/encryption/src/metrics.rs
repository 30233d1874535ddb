//! What sealing and opening come to, and how the configuration's file is followed, under upstream's names
//! (`apiserver/pkg/storage/value/metrics.go`, `apiserver/pkg/server/options/encryptionconfig/metrics`).

use crate::provider::{SEALED, SealError};
use isopod_base::reloads::Help;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    resource: String,
    transformation_type: &'static str,
    transformer_prefix: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    transformation_type: &'static str,
    transformer_prefix: String,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    Seal,
    Open,
}

impl Direction {
    pub fn name(self) -> &'static str {
        match self {
            Direction::Seal => "to_storage",
            Direction::Open => "from_storage",
        }
    }
}

/// `apiserver_storage_transformation_*`.
pub(crate) struct Transformations {
    operations: Family<OperationLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
}

impl Default for Transformations {
    fn default() -> Self {
        // From five microseconds on, each a double of the one before.
        let durations = || Histogram::new((0..25).map(|n| 5e-6 * f64::from(1 << n)));
        Transformations { operations: Family::default(), durations: Family::new_with_constructor(durations) }
    }
}

impl Transformations {
    pub fn register(&self, registry: &mut Registry) {
        let help = "[ALPHA] Latencies in seconds of value transformation operations.";
        registry.register("apiserver_storage_transformation_duration_seconds", help, self.durations.clone());
        let help = "[ALPHA] Total number of transformations. Successful transformation will have a status 'OK' and a varied \
                    status string when the transformation fails. The status, resource, and transformation_type fields can be \
                    used for alerting purposes. For example, you can monitor for encryption/decryption failures using the \
                    transformation_type (e.g., from_storage for decryption and to_storage for encryption). Additionally, \
                    these fields can be used to ensure that the correct transformers are applied to each resource.";
        registry.register("apiserver_storage_transformation_operations", help, self.operations.clone());
    }

    /// `sealed`: the value as it is stored, which names who has written it.
    pub fn observe(
        &self,
        (group, resource): (&str, &str),
        direction: Direction,
        sealed: &[u8],
        failure: Option<&SealError>,
        took: Duration,
    ) {
        let (transformation_type, transformer_prefix) = (direction.name(), prefix(direction, sealed, failure));
        let resource = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        if failure.is_none() {
            let labels = DurationLabels { transformation_type, transformer_prefix: transformer_prefix.clone() };
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let status = if failure.is_some() { "unknown-non-grpc" } else { "OK" };
        let labels = OperationLabels { resource, transformation_type, transformer_prefix, status };
        self.operations.get_or_create(&labels).inc();
    }
}

/// What metrics say of how the configuration's file is followed.
pub(crate) const RELOADS: Help<'_> = Help {
    totals: "[ALPHA] Total number of reload successes and failures of encryption configuration split by apiserver identity",
    last: "[ALPHA] Timestamp of the last successful or failed automatic reload of encryption configuration split by apiserver \
           identity",
    in_force: "[ALPHA] Information about the last applied encryption configuration with hash as label, split by apiserver identity",
};

/// What a provider puts in front: `k8s:enc:aesgcm:v1:`, or `k8s:enc:kms:v2:NAME:`.
fn prefix(direction: Direction, sealed: &[u8], failure: Option<&SealError>) -> String {
    let plain = match direction {
        Direction::Seal => "",
        Direction::Open => "identity",
    };
    // Names are those of the configuration only where one of its providers knew them.
    if matches!(failure, Some(SealError::NoProvider)) {
        return "unknown".to_owned();
    }
    let Some(behind) = sealed.strip_prefix(SEALED) else { return plain.to_owned() };
    let parts = if behind.starts_with(b"kms:") { 3 } else { 2 };
    let ends = behind.iter().enumerate().filter(|(_, b)| **b == b':').map(|(i, _)| i + 1);
    let end = ends.take(parts).last().unwrap_or_default();
    String::from_utf8_lossy(&sealed[..SEALED.len() + end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_name_the_provider() {
        for (sealed, wanted) in [
            (&b"k8s:enc:aesgcm:v1:key1:xyz:"[..], "k8s:enc:aesgcm:v1:"),
            (b"k8s:enc:kms:v2:mine:\xff:", "k8s:enc:kms:v2:mine:"),
            (b"{\"kind\":\"Secret\"}", "identity"),
            (b"k8s:enc:", "k8s:enc:"),
        ] {
            assert_eq!(prefix(Direction::Open, sealed, None), wanted);
        }
        assert_eq!(prefix(Direction::Seal, b"{}", None), "");
        assert_eq!(prefix(Direction::Open, b"k8s:enc:other:v1:", Some(&SealError::NoProvider)), "unknown");
    }

    #[test]
    fn operations_are_counted() {
        let (made, mut registry) = (Transformations::default(), Registry::default());
        made.register(&mut registry);
        let sealed = b"k8s:enc:aescbc:v1:a:x";
        let took = Duration::from_micros(7);
        made.observe(("", "secrets"), Direction::Seal, sealed, None, took);
        made.observe(("example.com", "foos"), Direction::Open, sealed, Some(&SealError::Sealed), took);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        for line in [
            "apiserver_storage_transformation_operations_total{resource=\"secrets\",transformation_type=\"to_storage\",\
             transformer_prefix=\"k8s:enc:aescbc:v1:\",status=\"OK\"} 1",
            "apiserver_storage_transformation_operations_total{resource=\"foos.example.com\",\
             transformation_type=\"from_storage\",transformer_prefix=\"k8s:enc:aescbc:v1:\",status=\"unknown-non-grpc\"} 1",
            "apiserver_storage_transformation_duration_seconds_count{transformation_type=\"to_storage\",\
             transformer_prefix=\"k8s:enc:aescbc:v1:\"} 1",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
    }
}
