//! The `Event` of audit.k8s.io/v1: what is recorded of one request at one stage, and the two forms in which a log keeps it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// How much is recorded of a request. Each level records what the ones before it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// How far the request had come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    #[default]
    RequestReceived,
    /// The head of the answer is out; of requests alone that take as long as they like.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

/// What the request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthenticationMetadata {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub impersonation_constraint: String,
}

/// The fields stand in upstream's order.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub kind: &'static str,
    pub api_version: &'static str,
    pub level: Level,
    #[serde(rename = "auditID")]
    pub id: String,
    pub stage: Stage,
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    pub verb: String,
    /// A `UserInfo` of authentication.k8s.io/v1.
    pub user: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_metadata: Option<AuthenticationMetadata>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectReference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<Box<RawValue>>,
    pub request_received_timestamp: String,
    pub stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Default for Event {
    fn default() -> Self {
        Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: Level::default(),
            id: String::new(),
            stage: Stage::default(),
            request_uri: String::new(),
            verb: String::new(),
            user: Value::Object(Default::default()),
            impersonated_user: None,
            authentication_metadata: None,
            source_ips: Vec::new(),
            user_agent: String::new(),
            object_ref: None,
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: String::new(),
            stage_timestamp: String::new(),
            annotations: BTreeMap::new(),
        }
    }
}

impl Event {
    /// One line of JSON with its end.
    pub fn json_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("an event always encodes into memory");
        line.push(b'\n');
        line
    }

    /// One line of the format `legacy`, without its end.
    pub fn legacy_line(&self) -> String {
        let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
        let groups = |v: &Value| {
            let all = v["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
            all.map(|g| format!("{g:?}")).collect::<Vec<_>>().join(",")
        };
        let or = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
        let (acts_as, as_groups) = match &self.impersonated_user {
            Some(user) => (text(user, "username"), or(groups(user), "<lookup>")),
            None => ("<self>".into(), "<lookup>".into()),
        };
        let namespace = self.object_ref.as_ref().map(|r| r.namespace.clone()).unwrap_or_default();
        let response = self.response_status.as_ref().map(|s| s["code"].as_i64().unwrap_or(0).to_string());
        format!(
            "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={:?} groups={:?} as={:?} asgroups={:?} user-agent={:?} \
             namespace={:?} uri={:?} response=\"{}\"",
            self.request_received_timestamp,
            self.id,
            self.stage.name(),
            self.source_ips.first().map_or("<unknown>", String::as_str),
            self.verb,
            or(text(&self.user, "username"), "<none>"),
            or(groups(&self.user), "<none>"),
            acts_as,
            as_groups,
            self.user_agent,
            or(namespace, "<none>"),
            self.request_uri,
            response.unwrap_or_else(|| "<deferred>".into()),
        )
    }
}

/// JSON without white space between its parts. The text must be JSON.
pub fn compact(text: &str) -> String {
    let (mut out, mut quoted, mut escaped) = (String::with_capacity(text.len()), false, false);
    for c in text.chars() {
        if quoted {
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            quoted = c == '"';
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_have_upstreams_shape() {
        let event = Event {
            level: Level::Metadata,
            id: "7".into(),
            stage: Stage::ResponseComplete,
            request_uri: "/api/v1/namespaces/a/pods?limit=1".into(),
            verb: "list".into(),
            user: json!({"username": "jane", "groups": ["x", "y"]}),
            source_ips: vec!["10.0.0.1".into()],
            object_ref: Some(ObjectReference {
                resource: "pods".into(),
                namespace: "a".into(),
                api_version: "v1".into(),
                ..Default::default()
            }),
            response_status: Some(json!({"metadata": {}, "code": 200})),
            request_received_timestamp: "2026-01-01T00:00:00.000000Z".into(),
            stage_timestamp: "2026-01-01T00:00:00.000001Z".into(),
            ..Default::default()
        };
        assert_eq!(
            String::from_utf8(event.json_line()).unwrap(),
            "{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"level\":\"Metadata\",\"auditID\":\"7\",\
             \"stage\":\"ResponseComplete\",\"requestURI\":\"/api/v1/namespaces/a/pods?limit=1\",\"verb\":\"list\",\
             \"user\":{\"groups\":[\"x\",\"y\"],\"username\":\"jane\"},\"sourceIPs\":[\"10.0.0.1\"],\
             \"objectRef\":{\"resource\":\"pods\",\"namespace\":\"a\",\"apiVersion\":\"v1\"},\
             \"responseStatus\":{\"code\":200,\"metadata\":{}},\
             \"requestReceivedTimestamp\":\"2026-01-01T00:00:00.000000Z\",\
             \"stageTimestamp\":\"2026-01-01T00:00:00.000001Z\"}\n"
        );
        assert_eq!(
            event.legacy_line(),
            r#"2026-01-01T00:00:00.000000Z AUDIT: id="7" stage="ResponseComplete" ip="10.0.0.1" method="list" user="jane" groups="\"x\",\"y\"" as="<self>" asgroups="<lookup>" user-agent="" namespace="a" uri="/api/v1/namespaces/a/pods?limit=1" response="200""#
        );
    }

    #[test]
    fn white_space_goes_but_in_text() {
        assert_eq!(compact("{ \"a b\" : [1,\n 2, \"\\\" \\\\\" ] }"), r#"{"a b":[1,2,"\" \\"]}"#);
    }
}
