//! Bootstrap tokens: secrets `bootstrap-token-ID` of `kube-system`, with which a new node asks for its certificate.

use super::{Known, Remarks, TokenSource, implicit};
use crate::ApiServer;
use async_trait::async_trait;
use base64::Engine;
use isopod_api::{UserInfo, time};
use isopod_kinds::access::Access;
use jiff::Timestamp;
use serde_json::Value;

pub struct BootstrapTokens;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

#[async_trait]
impl TokenSource for BootstrapTokens {
    async fn known(
        &self,
        server: &ApiServer,
        token: &str,
        audiences: &[String],
        _remarks: &Remarks<'_>,
    ) -> Result<Option<Known>, String> {
        let Some((id, key)) = parts(token) else { return Ok(None) };
        let name = format!("bootstrap-token-{id}");
        let secret = server.read("", "secrets", "kube-system", &name).await.map_err(|e| e.to_string())?;
        let Some(secret) = secret else { return Ok(None) };
        match user(&secret, id, key, server.config.clock.now()) {
            Ok(user) => Ok(implicit(server, audiences).map(|audiences| Known { user, audiences })),
            Err(why) => {
                tracing::debug!(secret = name, why, "a bootstrap token is refused");
                Ok(None)
            }
        }
    }
}

/// `id.secret`, of 6 and of 16 lower-case letters and digits.
fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

fn user(secret: &Value, id: &str, key: &str, now: Timestamp) -> Result<UserInfo, String> {
    let data = |name: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(secret["data"][name].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    if secret.has("metadata.deletionTimestamp") {
        return Err("it is deleted and awaits removal".into());
    }
    if secret.text("type") != TYPE {
        return Err(format!("its type is not {TYPE}"));
    }
    let stored = data("token-secret").unwrap_or_default();
    if !isopod_auth::token::is_equal(stored.as_bytes(), key.as_bytes()) || stored.is_empty() {
        return Err("its token-secret is another".into());
    }
    if data("token-id").as_deref() != Some(id) {
        return Err("its token-id is another".into());
    }
    if let Some(expiration) = data("expiration").filter(|e| !e.is_empty())
        && time::parse(&expiration).is_none_or(|t| t <= now)
    {
        return Err("it has expired".into());
    }
    if data("usage-bootstrap-authentication").as_deref() != Some("true") {
        return Err("it is not marked usage-bootstrap-authentication=true".into());
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',').filter(|g| !g.is_empty()) {
        let named = group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
            let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            let inner = |c: char| ends(c) || matches!(c, ':' | '-');
            rest.starts_with(ends) && rest.ends_with(ends) && rest.chars().all(inner)
        });
        if !named {
            return Err(format!("its group {group:?} does not begin with {GROUP}:"));
        }
        if !groups.iter().any(|g| g == group) {
            groups.push(group.to_owned());
        }
    }
    groups.sort();
    Ok(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_live_secret_for_authentication_counts() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let good = json!({"type": TYPE, "data": {
            "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"), "expiration": encode("2030-01-01T00:00:00Z"),
            "auth-extra-groups": encode("system:bootstrappers:a,system:bootstrappers:b:c"),
        }});
        let now = "2029-01-01T00:00:00Z".parse().unwrap();
        let check = |secret: &Value| user(secret, "abcdef", "0123456789abcdef", now);
        let found = check(&good).unwrap();
        assert_eq!(found.name, "system:bootstrap:abcdef");
        assert_eq!(found.groups, ["system:bootstrappers", "system:bootstrappers:a", "system:bootstrappers:b:c"]);
        for (key, value) in [
            ("token-id", "abcdeg"),
            ("token-secret", "0123456789abcdeg"),
            ("usage-bootstrap-authentication", "false"),
            ("expiration", "2028-01-01T00:00:00Z"),
            ("auth-extra-groups", "system:masters"),
        ] {
            let mut bad = good.clone();
            bad["data"][key] = encode(value).into();
            assert!(check(&bad).is_err(), "{key}");
        }
        let mut opaque = good.clone();
        opaque["type"] = "Opaque".into();
        assert!(check(&opaque).is_err());
        assert!(parts("abcdef.0123456789abcdef").is_some());
        for bad in ["abcdef", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde."] {
            assert!(parts(bad).is_none(), "{bad}");
        }
    }
}
