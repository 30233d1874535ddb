//! What the signers of `kubernetes.io` sign (`k8s.io/api/certificates/v1`, the signers' names).

use super::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING};
use isopod_pki::signing::{Names, Subject};
use std::collections::BTreeSet;

const DIGITAL_SIGNATURE: &str = "digital signature";
const KEY_ENCIPHERMENT: &str = "key encipherment";
const CLIENT_AUTH: &str = "client auth";
const SERVER_AUTH: &str = "server auth";

/// The error says why the signer does not sign it, in upstream's words.
pub(super) fn check(signer: &str, subject: &Subject, names: &Names, usages: &[String]) -> Result<(), String> {
    match signer {
        CLIENT => client(usages),
        KUBELET_CLIENT => kubelet_client(subject, names, usages),
        KUBELET_SERVING => kubelet_serving(subject, names, usages),
        _ => Ok(()),
    }
}

fn client(usages: &[String]) -> Result<(), String> {
    let other = usages.iter().find(|u| ![DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, CLIENT_AUTH].contains(&u.as_str()));
    if let Some(other) = other {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if !usages.iter().any(|u| u == CLIENT_AUTH) {
        return Err(format!("missing required usage for client certificate: {CLIENT_AUTH}"));
    }
    Ok(())
}

pub(super) fn kubelet_client(subject: &Subject, names: &Names, usages: &[String]) -> Result<(), String> {
    of_nodes(subject)?;
    none(&names.dns, "DNS subjectAltNames are not allowed")?;
    none(&names.emails, "Email subjectAltNames are not allowed")?;
    none(&names.ips, "IP subjectAltNames are not allowed")?;
    none(&names.uris, "URI subjectAltNames are not allowed")?;
    of_a_node(subject)?;
    exactly(usages, [CLIENT_AUTH, DIGITAL_SIGNATURE, KEY_ENCIPHERMENT])
}

fn kubelet_serving(subject: &Subject, names: &Names, usages: &[String]) -> Result<(), String> {
    of_nodes(subject)?;
    if names.dns.is_empty() && names.ips.is_empty() {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    none(&names.emails, "Email subjectAltNames are not allowed")?;
    none(&names.uris, "URI subjectAltNames are not allowed")?;
    exactly(usages, [DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, SERVER_AUTH])?;
    of_a_node(subject)
}

fn of_nodes(subject: &Subject) -> Result<(), String> {
    let holds = subject.organizations() == ["system:nodes"];
    if holds { Ok(()) } else { Err("subject organization is not system:nodes".to_owned()) }
}

fn of_a_node(subject: &Subject) -> Result<(), String> {
    let holds = subject.common_name().starts_with("system:node:");
    if holds { Ok(()) } else { Err("subject common name does not begin with system:node:".to_owned()) }
}

fn none<T>(names: &[T], why: &str) -> Result<(), String> {
    if names.is_empty() { Ok(()) } else { Err(why.to_owned()) }
}

/// All three, or these without what only RSA keys do.
fn exactly(usages: &[String], all: [&str; 3]) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let wanted = BTreeSet::from(all);
    let without: BTreeSet<&str> = all.into_iter().filter(|u| *u != KEY_ENCIPHERMENT).collect();
    let holds = given == wanted || given == without;
    if holds { Ok(()) } else { Err(format!("usages did not match [{}]", all.join(" "))) }
}

#[cfg(test)]
mod tests {
    use super::super::LEGACY;
    use super::*;
    use isopod_pki::signing::{COMMON_NAME, ORGANIZATION};

    /// `CN=… O=… dns=… ip=… email=… uri=…`
    fn asked(text: &str) -> (Subject, Names) {
        let (mut subject, mut names) = (Vec::new(), Names::default());
        for (key, value) in text.split(' ').filter_map(|p| p.split_once('=')) {
            let value = value.to_owned();
            match key {
                "CN" => subject.push((COMMON_NAME, value)),
                "O" => subject.push((ORGANIZATION, value)),
                "dns" => names.dns.push(value),
                "ip" => names.ips.push(value.parse().unwrap()),
                "email" => names.emails.push(value),
                "uri" => names.uris.push(value),
                other => panic!("{other}"),
            }
        }
        (subject.into_iter().collect(), names)
    }

    #[test]
    fn what_is_signed_and_what_is_said_else() {
        let all = "digital signature,key encipherment,client auth";
        let serving = "digital signature,server auth";
        let node = "CN=system:node:a O=system:nodes";
        for (signer, text, usages, want) in [
            (CLIENT, "CN=jane dns=a", all, ""),
            (CLIENT, "CN=jane", "client auth", ""),
            (CLIENT, "CN=jane", "server auth", "invalid usage for client certificate: server auth"),
            (CLIENT, "CN=jane", "digital signature", "missing required usage for client certificate: client auth"),
            (KUBELET_CLIENT, node, all, ""),
            (KUBELET_CLIENT, node, "client auth,digital signature", ""),
            (
                KUBELET_CLIENT,
                node,
                "client auth",
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (KUBELET_CLIENT, "CN=system:node:a", all, "subject organization is not system:nodes"),
            (KUBELET_CLIENT, "CN=system:node:a O=system:nodes O=b", all, "subject organization is not system:nodes"),
            (KUBELET_CLIENT, "CN=a O=system:nodes", all, "subject common name does not begin with system:node:"),
            (KUBELET_CLIENT, "CN=system:node:a O=system:nodes dns=a", all, "DNS subjectAltNames are not allowed"),
            (KUBELET_CLIENT, "CN=system:node:a O=system:nodes email=a@b", all, "Email subjectAltNames are not allowed"),
            (KUBELET_CLIENT, "CN=system:node:a O=system:nodes ip=::1", all, "IP subjectAltNames are not allowed"),
            (KUBELET_CLIENT, "CN=system:node:a O=system:nodes uri=a:b", all, "URI subjectAltNames are not allowed"),
            (KUBELET_SERVING, "CN=system:node:a O=system:nodes ip=192.0.2.1", serving, ""),
            (KUBELET_SERVING, node, serving, "DNS or IP subjectAltName is required"),
            (
                KUBELET_SERVING,
                "CN=system:node:a O=system:nodes dns=a uri=a:b",
                serving,
                "URI subjectAltNames are not allowed",
            ),
            (
                KUBELET_SERVING,
                "CN=a O=system:nodes dns=a",
                all,
                "usages did not match [digital signature key encipherment server auth]",
            ),
            (
                KUBELET_SERVING,
                "CN=a O=system:nodes dns=a",
                serving,
                "subject common name does not begin with system:node:",
            ),
            (LEGACY, "CN=a", "code signing", ""),
        ] {
            let usages: Vec<String> = usages.split(',').map(str::to_owned).collect();
            let (subject, names) = asked(text);
            let said = check(signer, &subject, &names, &usages).err().unwrap_or_default();
            assert_eq!(said, want, "{signer} {text} {usages:?}");
        }
    }
}
