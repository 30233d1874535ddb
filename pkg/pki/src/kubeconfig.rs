//! Kubeconfig files with embedded credentials.

use crate::Identity;
use base64::{Engine, engine::general_purpose::STANDARD};

/// A kubeconfig (YAML) with one cluster, user and context, all named `name`.
pub fn kubeconfig(name: &str, server: &str, ca_pem: &str, identity: &Identity) -> String {
    let b64 = |s: &str| STANDARD.encode(s);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {name}\n  user:\n    client-certificate-data: {cert}\n    \
         client-key-data: {key}\ncontexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\n\
         current-context: {name}\n",
        ca = b64(ca_pem),
        cert = b64(&identity.cert_pem),
        key = b64(&identity.key_pem),
    )
}

/// Whether a kubeconfig trusts this authority: is it one of its cluster?
pub fn is_kubeconfig_of(text: &str, ca_pem: &str) -> bool {
    text.contains(&STANDARD.encode(ca_pem))
}

/// The kubeconfig with another identity in the place of `old`; `None`: it does not have that one.
pub fn renew_kubeconfig(text: &str, old: &Identity, new: &Identity) -> Option<String> {
    let (old_cert, old_key) = (STANDARD.encode(&old.cert_pem), STANDARD.encode(&old.key_pem));
    let has_both = text.contains(&old_cert) && text.contains(&old_key);
    let renewed = || text.replace(&old_cert, &STANDARD.encode(&new.cert_pem));
    has_both.then(|| renewed().replace(&old_key, &STANDARD.encode(&new.key_pem)))
}
