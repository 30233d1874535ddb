//! Takes the descriptions of the built-in types from `k8s-openapi`'s schemas and embeds them as one compressed text, so that
//! no upstream text is committed and none lies in memory uncompressed.
//!
//! The text has a line for each definition and below it, indented by a tab, one for each field: name, tab, description,
//! where line breaks and backslashes are escaped.

use schemars::SchemaGenerator;
use serde_json::Value;
use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

/// Asks the generator for types, which brings along everything that they refer to.
macro_rules! visit {
    ($generator:ident; $($module:path { $($name:ident),+ })+) => {
        $({
            use $module as module;
            $($generator.subschema_for::<module::$name>();)+
        })+
    };
}

fn visit(generator: &mut SchemaGenerator) {
    visit! { generator;
        k8s_openapi::api::core::v1 {
            Binding, ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount
        }
        k8s_openapi::api::admissionregistration::v1 {
            MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration, ValidatingAdmissionPolicy,
            ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration
        }
        k8s_openapi::api::apps::v1 { ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet }
        k8s_openapi::api::authentication::v1 { SelfSubjectReview, TokenRequest, TokenReview }
        k8s_openapi::api::authorization::v1 {
            LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview
        }
        k8s_openapi::api::autoscaling::v1 { HorizontalPodAutoscaler, Scale }
        k8s_openapi::api::autoscaling::v2 { HorizontalPodAutoscaler }
        k8s_openapi::api::batch::v1 { CronJob, Job }
        k8s_openapi::api::certificates::v1 { CertificateSigningRequest, ClusterTrustBundle, PodCertificateRequest }
        k8s_openapi::api::coordination::v1 { Lease }
        k8s_openapi::api::discovery::v1 { EndpointSlice }
        k8s_openapi::api::events::v1 { Event }
        k8s_openapi::api::flowcontrol::v1 { FlowSchema, PriorityLevelConfiguration }
        k8s_openapi::api::networking::v1 { IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR }
        k8s_openapi::api::node::v1 { RuntimeClass }
        k8s_openapi::api::policy::v1 { Eviction, PodDisruptionBudget }
        k8s_openapi::api::rbac::v1 { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        k8s_openapi::api::resource::v1 { DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        k8s_openapi::api::scheduling::v1 { PriorityClass }
        k8s_openapi::api::storage::v1 {
            CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass
        }
        k8s_openapi::api::storagemigration::v1 { StorageVersionMigration }
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 { CustomResourceDefinition }
        k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 { APIService }
        k8s_openapi::apimachinery::pkg::apis::meta::v1 {
            APIGroup, APIGroupList, APIResourceList, APIVersions, DeleteOptions, ListMeta, ObjectMeta, Patch, Status
        }
        k8s_openapi::apimachinery::pkg::version { Info }
    }
}

fn escaped(description: &str) -> String {
    description.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t")
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    let mut generator = SchemaGenerator::default();
    visit(&mut generator);
    let mut text = String::new();
    let description = |v: &Value| v.get("description").and_then(Value::as_str).map(escaped).unwrap_or_default();
    for (name, definition) in generator.definitions() {
        writeln!(text, "{name}\t{}", description(definition))?;
        for (field, schema) in definition.get("properties").and_then(Value::as_object).into_iter().flatten() {
            writeln!(text, "\t{field}\t{}", description(schema))?;
        }
    }
    assert!(text.lines().count() > 2000, "k8s-openapi's schemas have shrunk to {} lines", text.lines().count());
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptions.zst");
    std::fs::write(out, zstd::encode_all(text.as_bytes(), 19)?)?;
    Ok(())
}
