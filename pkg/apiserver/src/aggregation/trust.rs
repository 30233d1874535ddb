//! The ConfigMap `kube-system/extension-apiserver-authentication`: whom extension API servers may trust. What other servers of
//! the cluster wrote there stays.

use super::front_proxy::RequestHeaders;
use crate::ApiServer;
use crate::candidate::update::Edit;
use crate::objects;
use crate::pipeline;
use isopod_api::Status;
use isopod_store::{EventKind, KeyRange, WatchMessage, WatchRequest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Map, Value, json};
use std::sync::{Arc, Weak};
use std::time::Duration;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
const AGAIN: Duration = Duration::from_secs(1);

/// Writes what this server trusts, beside what is there.
pub async fn publish(server: &ApiServer) -> Result<(), Status> {
    let settings = &server.config.aggregation;
    let wanted = |data: &Value| data_of(data, &settings.client_ca_pem, settings.request_headers.as_ref());
    let Some(kind) = server.registry.load().resource("", "configmaps").cloned() else { return Ok(()) };
    let intent = server.intent(&kind, NAMESPACE, NAME);
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE},
        "data": wanted(&Value::Null),
    });
    match pipeline::create(server, &intent, &object).await {
        Err(e) if e.reason == "AlreadyExists" => {}
        other => return other.map(drop),
    }
    let edit = Edit(|object: &mut Value| {
        object["data"] = wanted(&object["data"]);
        Ok(())
    });
    match pipeline::update(server, &intent, &edit).await {
        Err(e) if e.code != 404 => Err(e),
        _ => Ok(()),
    }
}

/// Writes it again when somebody deletes it, until the server stops.
pub async fn keep(weak: Weak<ApiServer>) {
    loop {
        let Some(server) = weak.upgrade() else { return };
        let stop = server.stop.clone();
        let deleted = stop.run_until_cancelled(deleted(server)).await;
        let Some(seen) = deleted else { return };
        let Some(server) = weak.upgrade() else { return };
        if let Err(e) = publish(&server).await {
            tracing::warn!(error = %e, "cannot write the config map {NAMESPACE}/{NAME}");
        } else if seen {
            continue;
        }
        drop(server);
        if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
            return;
        }
    }
}

/// Returns when the config map is deleted (true), or when it cannot be watched any more.
async fn deleted(server: Arc<ApiServer>) -> bool {
    let Some(kind) = server.registry.load().resource("", "configmaps").cloned() else { return false };
    let range = KeyRange::key(objects::key(&kind, NAMESPACE, NAME));
    let store = server.config.store.clone();
    drop(server);
    let Ok(mut watch) = store.watch(WatchRequest { range, start: 0 }).await else { return false };
    while let Some(Ok(message)) = watch.receiver.recv().await {
        let WatchMessage::Events(_, events) = message else { continue };
        if events.iter().any(|e| e.kind == EventKind::Delete) {
            return true;
        }
    }
    false
}

/// The config map's data: what is there, with what is missing of this server's.
fn data_of(before: &Value, client_ca: &str, headers: Option<&RequestHeaders>) -> Value {
    let text = |key: &str| before[key].as_str().unwrap_or_default();
    let mut data = Map::new();
    data.insert("client-ca-file".into(), certificates(text("client-ca-file"), client_ca).into());
    if let Some(own) = headers {
        let lists = [
            ("requestheader-username-headers", &own.username),
            ("requestheader-uid-headers", &own.uid),
            ("requestheader-group-headers", &own.group),
            ("requestheader-extra-headers-prefix", &own.extra_prefixes),
            ("requestheader-allowed-names", &own.allowed_names),
        ];
        for (key, own) in lists {
            let mut all: Vec<String> = serde_json::from_str(text(key)).unwrap_or_default();
            all.extend(own.iter().filter(|o| !all.contains(o)).cloned().collect::<Vec<_>>());
            if key != "requestheader-uid-headers" || !all.is_empty() {
                data.insert(key.into(), json!(all).to_string().into());
            }
        }
        let ca = certificates(text("requestheader-client-ca-file"), &own.ca_pem);
        data.insert("requestheader-client-ca-file".into(), ca.into());
    }
    data.into()
}

/// The certificates of both texts, each once.
fn certificates(before: &str, own: &str) -> String {
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let mut out = String::new();
    for text in [before, own] {
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()).flatten() {
            if !seen.iter().any(|s| s[..] == certificate[..]) {
                out.push_str(&pem(&certificate));
                seen.push(certificate.to_vec());
            }
        }
    }
    out
}

/// RFC 7468: base64 in lines of 64.
fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|b| char::from(*b)));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays() {
        let ca = |name: &str| {
            rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.pem().replace("\r\n", "\n")
        };
        let (own, other) = (ca("own"), ca("other"));
        let headers =
            RequestHeaders { ca_pem: own.clone(), allowed_names: vec!["me".into()], ..RequestHeaders::default() };
        let first = data_of(&Value::Null, &own, Some(&headers));
        assert_eq!(first["client-ca-file"], own);
        assert_eq!(first["requestheader-allowed-names"], r#"["me"]"#);
        assert_eq!(first["requestheader-username-headers"], r#"["X-Remote-User"]"#);
        assert_eq!(data_of(&first, &own, Some(&headers)), first);
        let before = json!({"client-ca-file": other, "requestheader-allowed-names": r#"["you"]"#});
        let both = data_of(&before, &own, Some(&headers));
        assert_eq!(both["client-ca-file"], format!("{other}{own}"));
        assert_eq!(both["requestheader-allowed-names"], r#"["you","me"]"#);
    }
}
