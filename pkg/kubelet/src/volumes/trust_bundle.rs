//! Trust anchors of a projected volume: one named bundle, or all of a signer that a selector chooses (KEP-3257).

use super::VolumeError;
use crate::objects::PodObjects;
use isopod_api::selector::LabelSelector;
use isopod_pki::request::{certificate_pem, certificates};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The anchors as one PEM text: each once, nothing between them. Empty where there are none and none need be.
pub async fn anchors(want: &ClusterTrustBundleProjection, objects: &mut PodObjects) -> Result<String, VolumeError> {
    let all = objects.trust_bundles().await.ok_or(VolumeError::NotSynced("ClusterTrustBundle"))?;
    Ok(normalize(&chosen(want, all)?))
}

fn chosen(
    want: &ClusterTrustBundleProjection,
    all: Vec<Arc<ClusterTrustBundle>>,
) -> Result<Vec<Arc<ClusterTrustBundle>>, VolumeError> {
    let optional = want.optional == Some(true);
    if let Some(name) = &want.name {
        let found = all.into_iter().find(|b| b.metadata.name.as_ref() == Some(name));
        return match found {
            Some(bundle) => Ok(vec![bundle]),
            None if optional => Ok(Vec::new()),
            None => Err(VolumeError::NoTrustBundle(name.clone())),
        };
    }
    let signer = want.signer_name.as_deref().ok_or(VolumeError::UnnamedTrustBundle)?;
    let selector = want.label_selector.as_ref().and_then(|s| serde_json::to_value(s).ok());
    let selector = LabelSelector::from_object(selector.as_ref()).map_err(|e| VolumeError::Selector(e.to_string()))?;
    let none = BTreeMap::new();
    let fits = |b: &Arc<ClusterTrustBundle>| {
        b.spec.signer_name.as_deref() == Some(signer) && selector.matches(b.metadata.labels.as_ref().unwrap_or(&none))
    };
    let found: Vec<_> = all.into_iter().filter(fits).collect();
    if found.is_empty() && !optional { Err(VolumeError::NoTrustBundleOfSigner) } else { Ok(found) }
}

fn normalize(bundles: &[Arc<ClusterTrustBundle>]) -> String {
    let anchors: BTreeSet<Vec<u8>> = bundles.iter().flat_map(|b| certificates(&b.spec.trust_bundle)).collect();
    anchors.iter().map(|a| certificate_pem(a)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn bundle(name: &str, signer: Option<&str>, tier: &str, ders: &[&[u8]]) -> Arc<ClusterTrustBundle> {
        let text: String = ders.iter().map(|d| format!("noise\n{}", certificate_pem(d))).collect();
        let spec = json!({"signerName": signer, "trustBundle": text});
        let object = json!({"metadata": {"name": name, "labels": {"tier": tier}}, "spec": spec});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn bundles_are_chosen_by_name_or_by_signer_and_labels() {
        let all = vec![
            bundle("a", None, "x", &[b"1"]),
            bundle("s:b", Some("s/s"), "x", &[b"1", b"2"]),
            bundle("s:c", Some("s/s"), "y", &[b"2", b"3"]),
            bundle("t:d", Some("t/t"), "x", &[b"4"]),
        ];
        let pem = |ders: &[&[u8]]| -> String { ders.iter().map(|d| certificate_pem(d)).collect() };
        let with = |want: Value| {
            let want: ClusterTrustBundleProjection = serde_json::from_value(want).unwrap();
            chosen(&want, all.clone()).map(|b| normalize(&b)).map_err(|e| e.to_string())
        };
        for (want, text) in [
            (json!({"path": "p", "name": "a"}), pem(&[b"1"])),
            (json!({"path": "p", "name": "no", "optional": true}), String::new()),
            (json!({"path": "p", "signerName": "s/s", "labelSelector": {}}), pem(&[b"1", b"2", b"3"])),
            (
                json!({"path": "p", "signerName": "s/s", "labelSelector": {"matchLabels": {"tier": "y"}}}),
                pem(&[b"2", b"3"]),
            ),
            (json!({"path": "p", "signerName": "s/s", "optional": true}), String::new()),
        ] {
            assert_eq!(with(want.clone()), Ok(text), "{want}");
        }
        for want in [
            json!({"path": "p", "name": "no"}),
            json!({"path": "p", "signerName": "s/s"}),
            json!({"path": "p", "signerName": "no/no", "labelSelector": {}}),
            json!({"path": "p"}),
        ] {
            assert!(with(want.clone()).is_err(), "{want}");
        }
    }
}
