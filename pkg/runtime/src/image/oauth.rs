//! Identity tokens. The one that a registry gave at log-in is a refresh token: the registry's authorization server exchanges
//! it for a token that may pull one repository (distribution's "OAuth2 token authentication"). Invariant: it is shown to that
//! server alone, never to the registry.

use reqwest::header::WWW_AUTHENTICATE;
use serde::Deserialize;

/// Who asks, in the authorization server's log.
const CLIENT_ID: &str = "isopod";

#[derive(Deserialize)]
struct Granted {
    access_token: String,
}

/// The token with which to pull from `repository`; `None` where the registry wants none. `base` is the registry's URL
/// without a path.
pub async fn exchange(
    http: &reqwest::Client,
    base: &str,
    repository: &str,
    identity_token: &str,
) -> Result<Option<String>, String> {
    let said = |e: reqwest::Error| isopod_base::errors::Chain(&e).to_string();
    let asked = http.get(format!("{base}/v2/")).send().await.map_err(said)?;
    if asked.status().is_success() {
        return Ok(None);
    }
    let challenges = asked.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
    let Some(bearer) = challenges.filter_map(Bearer::parse).next() else {
        return Err("it has no authorization server that would take an identity token".into());
    };
    let form = [
        ("grant_type", "refresh_token"),
        ("refresh_token", identity_token),
        ("service", &bearer.service),
        ("client_id", CLIENT_ID),
        ("scope", &format!("repository:{repository}:pull")),
    ];
    let answer = http.post(&bearer.realm).form(&form).send().await.map_err(said)?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("{} does not take the identity token: {status}", bearer.realm));
    }
    Ok(Some(answer.json::<Granted>().await.map_err(said)?.access_token))
}

/// A `Bearer` challenge (RFC 6750).
#[derive(Debug, PartialEq, Eq)]
struct Bearer {
    realm: String,
    service: String,
}

impl Bearer {
    fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, String::new());
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            match name.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = value.to_owned(),
                _ => {}
            }
            rest = after;
        }
        Some(Bearer { realm: realm?, service })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: &str| Some(Bearer { realm: realm.into(), service: service.into() });
        for (header, want) in [
            (
                r#"Bearer realm="https://a.example/token",service="r.example""#,
                bearer("https://a.example/token", "r.example"),
            ),
            (
                r#"bearer service=r, scope="repository:a/b:pull,push", realm="https://a.example/t?x=1,2""#,
                bearer("https://a.example/t?x=1,2", "r"),
            ),
            (r#"Bearer realm="https://a.example/token""#, bearer("https://a.example/token", "")),
            (r#"Bearer service="r""#, None),
            (r#"Basic realm="r""#, None),
            (r#"Bearer realm="unclosed"#, None),
            ("Bearer", None),
        ] {
            assert_eq!(Bearer::parse(header), want, "{header}");
        }
    }
}
