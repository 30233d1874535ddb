//! Views of admission policies.

use super::*;

views! {
    ValidatingAdmissionPolicy { metadata: Meta, spec: Value, status: AdmissionPolicyStatus }
    AdmissionPolicyStatus { observed_generation: i64 }
}

objects! {
    ValidatingAdmissionPolicy = cluster("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies");
}
