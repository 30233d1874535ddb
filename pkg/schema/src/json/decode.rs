//! Decodes JSON against a schema. What is an error, and its text, follows `sigs.k8s.io/json`, which upstream decodes with:
//! the first type error is reported unless the text is no JSON at all; unknown and duplicate fields are collected, in
//! order, up to 100.

use super::scan::{Scanner, Syntax, Token, number};
use crate::scalar;
use crate::types::{Field, Node, Object};
use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose::STANDARD};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashSet;

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// Paths of unknown fields (`spec.foo`), which are not in `value`.
    pub unknown: Vec<String>,
    /// Paths of fields that stood twice; the last one won.
    pub duplicate: Vec<String>,
    /// Both of the above as upstream words them (`unknown field "spec.foo"`), in the order in which they were met.
    pub strict: Vec<String>,
}

/// Why a body is not an object of this schema. The texts are those of Go's decoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{0}")]
    Syntax(String),
    #[error("{0}")]
    Type(String),
}

/// Upstream stops collecting strict errors here.
pub(super) const MAX_STRICT: usize = 100;

/// Decodes a body.
pub fn decode(bytes: &[u8], object: &Object) -> Result<Decoded, DecodeError> {
    let mut scanner = Scanner::new(bytes);
    let mut d = Decoder::default();
    let value = d.top(&mut scanner, object).and_then(|v| scanner.end().map(|()| v)).map_err(DecodeError::Syntax)?;
    if let Some(text) = d.abort.or(d.saved) {
        return Err(DecodeError::Type(text));
    }
    Ok(Decoded { value, unknown: d.unknown, duplicate: d.duplicate, strict: d.strict })
}

/// [`decode`] of a value that is parsed already (from YAML, from a patch).
pub fn decode_value(value: Value, object: &Object) -> Result<Decoded, DecodeError> {
    decode(&super::encode(&value), object)
}

#[derive(Default)]
struct Decoder<'s> {
    unknown: Vec<String>,
    duplicate: Vec<String>,
    strict: Vec<String>,
    seen: HashSet<String>,
    /// Path for unknown and duplicate fields: `spec.containers[0].name`.
    path: String,
    /// Path for type errors: names only, with those of inlined structs.
    go_path: String,
    /// The struct that the field is one of.
    inside: Option<&'s Object>,
    /// The first type error.
    saved: Option<String>,
    /// An error from a type that decodes itself: Go stops there, so it hides `saved`.
    abort: Option<String>,
    /// Inside a type that decodes itself nothing is strict.
    muted: u32,
    /// Inside a custom resource: no value has a wrong type, validation reports it.
    lenient: bool,
}

type Out = Result<Option<Value>, Syntax>;

impl<'s> Decoder<'s> {
    fn top(&mut self, s: &mut Scanner, object: &'s Object) -> Result<Value, Syntax> {
        self.lenient = object.custom;
        match s.token()? {
            Token::Object => self.object(s, object),
            Token::Null if !object.custom => {
                s.skip()?;
                Ok(Value::Object(Map::new()))
            }
            t => {
                s.skip()?;
                self.saved =
                    Some(format!("json: cannot unmarshal {} into Go value of type {}", t.noun(), object_type(object)));
                Ok(Value::Null)
            }
        }
    }

    fn report(&mut self, duplicate: bool, key: &str) {
        if self.muted > 0 || self.strict.len() >= MAX_STRICT {
            return;
        }
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        let text = format!("{} field {path:?}", if duplicate { "duplicate" } else { "unknown" });
        if self.seen.insert(text.clone()) {
            self.strict.push(text);
            if duplicate { self.duplicate.push(path) } else { self.unknown.push(path) }
        }
    }

    fn type_text(&self, what: &str, go_type: &str) -> String {
        let name = self.inside.map_or("", Object::go_name);
        if name.is_empty() && self.go_path.is_empty() {
            return format!("json: cannot unmarshal {what} into Go value of type {go_type}");
        }
        format!("json: cannot unmarshal {what} into Go struct field {name}.{} of type {go_type}", self.go_path)
    }

    /// Consumes a value of a wrong type: reports it, or keeps it in a custom resource.
    fn mismatch(&mut self, s: &mut Scanner, node: &Node, named: Option<&str>) -> Out {
        let noun = s.token()?.noun();
        if self.lenient {
            return s.value().map(Some);
        }
        s.skip()?;
        self.save(noun, node, named);
        Ok(None)
    }

    fn save(&mut self, what: &str, node: &Node, named: Option<&str>) {
        if self.saved.is_none() {
            let go_type = named.map_or_else(|| go_type(node), str::to_owned);
            self.saved = Some(self.type_text(what, &go_type));
        }
    }

    fn abort(&mut self, text: String) {
        self.abort.get_or_insert(text);
    }

    fn object(&mut self, s: &mut Scanner, object: &'s Object) -> Result<Value, Syntax> {
        let mut map = Map::new();
        let mut met = vec![false; object.fields.len()];
        let (outer, outer_lenient) = (self.inside, self.lenient);
        let (path, go_path) = (self.path.len(), self.go_path.len());
        self.lenient = object.custom;
        s.object::<Syntax>(&mut |s, key| {
            match object.position(&key) {
                Some(i) => {
                    if std::mem::replace(&mut met[i], true) {
                        self.report(true, &key);
                    }
                    let field = &object.fields[i];
                    self.enter(object, field);
                    match self.node(s, &field.node, field.go_type.as_deref())? {
                        Some(Value::Null) if !field.nullable && field.default.is_none() => {
                            drop(map.remove(&field.name))
                        }
                        Some(v) => drop(map.insert(field.name.clone(), v)),
                        None => drop(map.remove(&field.name)),
                    }
                    self.path.truncate(path);
                    self.go_path.truncate(go_path);
                    self.inside = outer;
                }
                None if object.preserve_unknown => {
                    if map.contains_key(key.as_ref()) {
                        self.report(true, &key);
                    }
                    push(&mut self.path, &key);
                    let value = self.any(s)?;
                    self.path.truncate(path);
                    map.insert(key.into_owned(), value);
                }
                None => {
                    self.report(false, &key);
                    s.skip()?;
                }
            }
            Ok(())
        })?;
        self.lenient = outer_lenient;
        Ok(Value::Object(map))
    }

    fn enter(&mut self, object: &'s Object, field: &Field) {
        push(&mut self.path, &field.name);
        if !field.embedded.is_empty() {
            push(&mut self.go_path, &field.embedded);
        }
        push(&mut self.go_path, &field.name);
        self.inside = Some(object);
    }

    /// `named`: the name of the Go type where it has one of its own.
    fn node(&mut self, s: &mut Scanner, node: &'s Node, named: Option<&str>) -> Out {
        let token = s.token()?;
        if token == Token::Null {
            s.skip()?;
            return Ok(self.lenient.then_some(Value::Null));
        }
        match (node, token) {
            (Node::Bool, Token::Bool) => Ok(s.literal()?.map(Value::Bool)),
            (Node::String, Token::String) => Ok(Some(Value::String(s.string()?.into_owned()))),
            (Node::Int32 | Node::Int64 | Node::Double, Token::Number) => self.number(s, node, named),
            (Node::Any, _) if self.lenient => self.any(s).map(Some),
            (Node::Any | Node::FieldsV1, _) => s.value().map(Some),
            (Node::Bytes, Token::String) => self.bytes(s),
            (Node::IntOrString, Token::String) => Ok(Some(Value::String(s.string()?.into_owned()))),
            (Node::Quantity | Node::Time | Node::MicroTime | Node::Duration | Node::IntOrString, _) => {
                self.special(s, node, token)
            }
            (Node::List(list), Token::Array) => {
                let item = named.and_then(|n| n.strip_prefix("[]"));
                self.list(s, &list.item, item).map(Some)
            }
            (Node::Map(m), Token::Object) => {
                let value = named.and_then(|n| n.strip_prefix("map[")).and_then(|n| n.split_once(']')).map(|(_, v)| v);
                self.map(s, m, value).map(Some)
            }
            (Node::Object(o), Token::Object) => self.object(s, o.get()).map(Some),
            (Node::SchemaOrBool(_) | Node::SchemaOrArray(_) | Node::SchemaOrStringArray(_), _) => {
                self.schema(s, node, token)
            }
            _ => self.mismatch(s, node, named),
        }
    }

    fn number(&mut self, s: &mut Scanner, node: &Node, named: Option<&str>) -> Out {
        let literal = s.number()?;
        let fits = match node {
            Node::Int32 => literal.parse::<i32>().is_ok(),
            Node::Int64 => literal.parse::<i64>().is_ok(),
            _ => literal.parse::<f64>().is_ok_and(f64::is_finite),
        };
        if fits || self.lenient {
            return number(literal).map(Some);
        }
        self.save(&format!("number {literal}"), node, named);
        Ok(None)
    }

    fn bytes(&mut self, s: &mut Scanner) -> Out {
        let text = s.string()?;
        if self.lenient {
            return Ok(Some(Value::String(text.into_owned())));
        }
        match decode_base64(&text) {
            Ok(bytes) => Ok(Some(Value::String(STANDARD.encode(bytes)))),
            Err(offset) => {
                self.saved.get_or_insert_with(|| format!("illegal base64 data at input byte {offset}"));
                Ok(None)
            }
        }
    }

    /// The types that decode themselves from one literal.
    fn special(&mut self, s: &mut Scanner, node: &Node, token: Token) -> Out {
        if self.lenient {
            return s.value().map(Some);
        }
        let text: Cow<str> = match token {
            Token::String => s.string()?,
            Token::Number => Cow::Borrowed(s.number()?),
            _ => {
                s.skip()?;
                Cow::Borrowed(token.noun())
            }
        };
        let parsed = match (node, token) {
            (Node::Quantity, _) => scalar::quantity(&text).map(Value::String),
            (Node::IntOrString, Token::Number) => {
                text.parse::<i32>().map(Value::from).map_err(|_| self.type_text(&format!("number {text}"), "int32"))
            }
            (Node::IntOrString, _) => Err(self.type_text(token.noun(), "int32")),
            (_, t) if t != Token::String => Err(self.type_text(t.noun(), "string")),
            (Node::Time, _) => scalar::time(&text).map(Value::String),
            (Node::MicroTime, _) => scalar::micro_time(&text).map(Value::String),
            _ => scalar::duration(&text).map(Value::String),
        };
        match parsed {
            Ok(v) => Ok(Some(v)),
            Err(e) => {
                self.abort(e);
                Ok(None)
            }
        }
    }

    fn list(&mut self, s: &mut Scanner, item: &'s Node, named: Option<&str>) -> Result<Value, Syntax> {
        let mut items = Vec::new();
        let path = self.path.len();
        s.array::<Syntax>(&mut |s, i| {
            push_index(&mut self.path, i);
            items.push(self.node(s, item, named)?.unwrap_or_else(|| super::zero(item)));
            self.path.truncate(path);
            Ok(())
        })?;
        Ok(Value::Array(items))
    }

    /// Whatever there is no schema for, of which all but the last of equal keys are lost.
    fn any(&mut self, s: &mut Scanner) -> Result<Value, Syntax> {
        let path = self.path.len();
        match s.token()? {
            Token::Object => {
                let mut map = Map::new();
                let mut twice = HashSet::new();
                s.object::<Syntax>(&mut |s, key| {
                    // Once: a path may be long.
                    if map.contains_key(key.as_ref()) && twice.insert(key.clone()) {
                        self.report(true, &key);
                    }
                    push(&mut self.path, &key);
                    let value = self.any(s)?;
                    self.path.truncate(path);
                    map.insert(key.into_owned(), value);
                    Ok(())
                })?;
                Ok(Value::Object(map))
            }
            Token::Array => {
                let mut items = Vec::new();
                s.array::<Syntax>(&mut |s, i| {
                    push_index(&mut self.path, i);
                    items.push(self.any(s)?);
                    self.path.truncate(path);
                    Ok(())
                })?;
                Ok(Value::Array(items))
            }
            _ => s.value(),
        }
    }

    fn map(&mut self, s: &mut Scanner, of: &'s crate::types::Map, named: Option<&str>) -> Result<Value, Syntax> {
        let value = &of.value;
        let mut map = Map::new();
        let path = self.path.len();
        s.object::<Syntax>(&mut |s, key| {
            if map.contains_key(key.as_ref()) {
                self.report(true, &key);
            }
            push(&mut self.path, &key);
            let zero = || if matches!(value, Node::Bytes) { "".into() } else { super::zero(value) };
            let v = self.node(s, value, named)?.unwrap_or_else(zero);
            self.path.truncate(path);
            // Null in a custom resource is a value only where its schema says so.
            if !(v.is_null() && self.lenient && !of.nullable_values) {
                map.insert(key.into_owned(), v);
            }
            Ok(())
        })?;
        Ok(Value::Object(map))
    }

    /// `JSONSchemaPropsOr…`: these decode themselves, and not strictly.
    fn schema(&mut self, s: &mut Scanner, node: &'s Node, token: Token) -> Out {
        self.muted += 1;
        let out = match (node, token) {
            (Node::SchemaOrBool(o) | Node::SchemaOrArray(o) | Node::SchemaOrStringArray(o), Token::Object) => {
                self.object(s, o.get()).map(Some)
            }
            (Node::SchemaOrBool(_), Token::Bool) => s.literal().map(|b| b.map(Value::Bool)),
            (Node::SchemaOrArray(o), Token::Array) => {
                let mut items = Vec::new();
                s.array::<Syntax>(&mut |s, _| {
                    if s.token()? == Token::Object {
                        items.push(self.object(s, o.get())?);
                        return Ok(());
                    }
                    let t = s.token()?;
                    s.skip()?;
                    let text = self.type_text(t.noun(), &object_type(o.get()));
                    self.abort(text);
                    Ok(())
                })
                .map(|()| Some(Value::Array(items)))
            }
            (Node::SchemaOrStringArray(_), Token::Array) => self.list(s, &Node::String, None).map(Some),
            (Node::SchemaOrBool(_), _) => {
                self.abort("boolean or JSON schema expected".to_owned());
                s.skip().map(|()| None)
            }
            _ => s.skip().map(|()| None),
        };
        self.muted -= 1;
        out
    }
}

fn push(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

fn push_index(path: &mut String, i: usize) {
    path.push('[');
    path.push_str(&i.to_string());
    path.push(']');
}

/// Base64 as Go's `StdEncoding` takes it: padded, line breaks ignored, trailing bits not checked. The error is the offset
/// that Go names.
pub(crate) fn decode_base64(text: &str) -> Result<Vec<u8>, usize> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
    );
    let clean: Cow<str> =
        if text.contains(['\r', '\n']) { Cow::Owned(text.replace(['\r', '\n'], "")) } else { Cow::Borrowed(text) };
    LENIENT.decode(clean.as_bytes()).map_err(|_| corrupt_at(text.as_bytes()))
}

/// Where Go's decoder finds that a text is not base64: it reads four characters at a time.
fn corrupt_at(text: &[u8]) -> usize {
    let is_newline = |c: &u8| matches!(c, b'\r' | b'\n');
    let mut at = 0;
    while at < text.len() {
        let mut read = 0;
        while read < 4 {
            let Some(c) = text.get(at) else { return at - read };
            at += 1;
            match c {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => read += 1,
                c if is_newline(c) => {}
                b'=' if read >= 2 => {
                    let skip = |from: usize| text[from..].iter().position(|c| !is_newline(c)).map(|n| from + n);
                    if read == 2 {
                        match skip(at) {
                            None => return text.len(),
                            Some(next) if text[next] != b'=' => return at - 1,
                            Some(next) => at = next + 1,
                        }
                    }
                    // Anything after the padding is too much.
                    return skip(at).unwrap_or(at);
                }
                _ => return at - 1,
            }
        }
    }
    at
}

/// `v1.Container`.
fn object_type(object: &Object) -> String {
    let mut parts = object.name.rsplit('.');
    let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{package}.{name}")
}

/// The name of the Go type that a node stands for, where it has no name of its own.
fn go_type(node: &Node) -> String {
    match node {
        Node::Bool => "bool".into(),
        Node::Int32 => "int32".into(),
        Node::Int64 => "int64".into(),
        Node::Double => "float64".into(),
        Node::String => "string".into(),
        Node::Bytes => "[]uint8".into(),
        Node::List(l) => format!("[]{}", go_type(&l.item)),
        Node::Map(m) => format!("map[string]{}", go_type(&m.value)),
        Node::Object(o) => object_type(o.get()),
        Node::Quantity => "resource.Quantity".into(),
        Node::IntOrString => "intstr.IntOrString".into(),
        Node::Time => "v1.Time".into(),
        Node::MicroTime => "v1.MicroTime".into(),
        Node::Duration => "v1.Duration".into(),
        Node::FieldsV1 => "v1.FieldsV1".into(),
        Node::Any => "runtime.RawExtension".into(),
        Node::SchemaOrBool(_) => "v1.JSONSchemaPropsOrBool".into(),
        Node::SchemaOrArray(_) => "v1.JSONSchemaPropsOrArray".into(),
        Node::SchemaOrStringArray(_) => "v1.JSONSchemaPropsOrStringArray".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::Gvk;
    use serde_json::json;

    fn object(group: &str, kind: &str) -> std::sync::Arc<Object> {
        crate::facts::builtin().object_of(&Gvk::new(group, "v1", kind)).expect("built in")
    }

    fn type_error(group: &str, kind: &str, body: Value) -> String {
        match decode(body.to_string().as_bytes(), &object(group, kind)) {
            Err(DecodeError::Type(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn type_errors_are_those_of_go() {
        for (kind, body, want) in [
            (
                "Deployment",
                json!({"spec": {"replicas": "3"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "Deployment",
                json!({"spec": {"replicas": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "Deployment",
                json!({"spec": {"template": {"spec": {"containers": {"name": "a"}}}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                "Deployment",
                json!({"spec": {"template": {"spec": {"restartPolicy": 1}}}}),
                "json: cannot unmarshal number into Go struct field PodSpec.spec.template.spec.restartPolicy of type v1.RestartPolicy",
            ),
            (
                "Deployment",
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                "Deployment",
                json!({"metadata": {"labels": []}}),
                "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string",
            ),
            ("Deployment", json!([]), "json: cannot unmarshal array into Go value of type v1.Deployment"),
            (
                "Deployment",
                json!({"metadata": {"creationTimestamp": "x"}}),
                r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#,
            ),
        ] {
            assert_eq!(type_error("apps", kind, body), want);
        }
        let volume = json!({"spec": {"volumes": [{"name": "a", "hostPath": "x"}]}});
        assert_eq!(
            type_error("", "Pod", volume),
            "json: cannot unmarshal string into Go struct field Volume.spec.volumes.VolumeSource.hostPath of type v1.HostPathVolumeSource"
        );
        let quantity = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}});
        assert_eq!(
            type_error("", "Pod", quantity),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        );
        for (text, at) in
            [("x", 0), ("AAECAw==x", 8), ("AAE", 0), ("AA=x", 2), ("A===", 1), ("AAECA!==", 5), ("AAECAw=", 7)]
        {
            let want = format!("illegal base64 data at input byte {at}");
            assert_eq!(type_error("", "Secret", json!({"data": {"a": text}})), want, "{text}");
        }
        let port = json!({"spec": {"ports": [{"targetPort": true}]}});
        assert_eq!(
            type_error("", "Service", port),
            "json: cannot unmarshal bool into Go struct field ServicePort.spec.ports.targetPort of type int32"
        );
    }

    #[test]
    fn unknown_and_duplicate_fields_are_reported_in_order() {
        let body = br#"{"spec":{"replicas":1,"foo":1,"replicas":2,"template":{"spec":{"containers":[{"name":"a"},{"nam":"b"}]}}},
            "metadata":{"labels":{"a":"b","a":"c"}},"bar":{}}"#;
        let d = decode(body, &object("apps", "Deployment")).unwrap();
        assert_eq!(
            d.strict,
            [
                r#"unknown field "spec.foo""#,
                r#"duplicate field "spec.replicas""#,
                r#"unknown field "spec.template.spec.containers[1].nam""#,
                r#"duplicate field "metadata.labels.a""#,
                r#"unknown field "bar""#
            ]
        );
        assert_eq!(d.unknown, ["spec.foo", "spec.template.spec.containers[1].nam", "bar"]);
        assert_eq!(d.duplicate, ["spec.replicas", "metadata.labels.a"]);
        assert_eq!(
            d.value,
            json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "a"}, {}]}}}, "metadata": {"labels": {"a": "c"}}})
        );
    }

    #[test]
    fn null_is_no_value() {
        let body = json!({"metadata": {"labels": null, "annotations": {"a": null}, "creationTimestamp": null}, "spec": null, "data": null});
        let d = decode_value(body, &object("", "Pod")).unwrap();
        assert_eq!(d.value, json!({"metadata": {"annotations": {"a": ""}}}));
        assert_eq!(d.unknown, ["data"]);
    }

    #[test]
    fn syntax_comes_before_types() {
        let e = decode(br#"{"spec":{"replicas":"x"},}"#, &object("apps", "Deployment")).unwrap_err();
        assert_eq!(e.to_string(), "invalid character '}' looking for beginning of object key string");
    }

    #[test]
    fn schemas_in_custom_resource_definitions() {
        let crd = object("apiextensions.k8s.io", "CustomResourceDefinition");
        let body = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {"a": {"items": {"type": "string"}, "additionalProperties": true}}}}}]}});
        assert_eq!(decode_value(body.clone(), &crd).unwrap().value, body);
    }
}
