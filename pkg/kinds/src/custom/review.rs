//! `ConversionReview`: the question to a conversion webhook, and what of its answer is believed
//! (`apiextensions-apiserver/pkg/apiserver/conversion/webhook_converter.go`).

use super::hooks::go_type;
use crate::access::Access;
use crate::metadata;
use isopod_api::{FieldErrors, Path};
use serde_json::{Map, Value, json};

const GROUP: &str = "apiextensions.k8s.io";

/// The server that a definition names for its conversions.
pub struct Webhook {
    /// Name of the definition.
    pub definition: String,
    /// `clientConfig`.
    pub client: Value,
    review_versions: Vec<String>,
}

/// What was wrong with an answer, by the name that metrics give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Call,
    Malformed,
    Partial,
    Invalid,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::Call => "conversion_webhook_call_failure",
            Self::Malformed => "conversion_webhook_malformed_response_failure",
            Self::Partial => "conversion_webhook_partial_response_failure",
            Self::Invalid => "conversion_webhook_invalid_converted_object_failure",
        }
    }
}

/// A conversion that failed: why, for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub fault: Fault,
    pub message: String,
}

impl Webhook {
    /// `None`: the definition names none.
    pub(super) fn new(definition: &Value) -> Option<Self> {
        let conversion = definition.at("spec.conversion");
        (conversion.text("strategy") == "Webhook").then(|| Webhook {
            definition: definition.text("metadata.name").to_owned(),
            client: conversion.at("webhook.clientConfig").clone(),
            review_versions: owned(conversion.texts("webhook.conversionReviewVersions")),
        })
    }

    /// The version to ask in: the first of the webhook's that is known here.
    fn review_version(&self) -> Option<&str> {
        self.review_versions.iter().map(String::as_str).find(|v| matches!(*v, "v1" | "v1beta1"))
    }

    /// The question about objects that are to be of `api_version`.
    pub fn question(&self, uid: &str, objects: &[Value], api_version: &str) -> Result<Value, Failed> {
        let version = self.review_version().ok_or_else(|| Failed {
            fault: Fault::Call,
            message: "no supported conversion review versions".to_owned(),
        })?;
        Ok(json!({
            "kind": "ConversionReview", "apiVersion": format!("{GROUP}/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects},
        }))
    }

    /// The call failed.
    pub fn unanswered(&self, objects: &[Value], why: &str) -> Failed {
        failed(objects, Fault::Call, &format!("failed: {why}"))
    }

    /// The objects of the answer, each with the metadata that it had but for labels and annotations.
    pub fn answer(&self, uid: &str, objects: &[Value], api_version: &str, review: Value) -> Result<Vec<Value>, Failed> {
        let converted = self.converted(uid, review);
        let converted = converted.map_err(|why| failed(objects, Fault::Malformed, &format!("failed: {why}")))?;
        if converted.len() != objects.len() {
            let why = format!("returned {} objects, expected {}", converted.len(), objects.len());
            return Err(failed(objects, Fault::Partial, &why));
        }
        let single = objects.len() == 1;
        let both = objects.iter().zip(converted).enumerate();
        let accepted = both.map(|(index, (original, mut object))| {
            let at = if single { "object".to_owned() } else { format!("converted object at index {index}") };
            let wrong = |why: &str| failed(&objects[index..], Fault::Invalid, why);
            typed(&object).map_err(|why| match single {
                true => Failed { fault: Fault::Invalid, message: why },
                false => wrong(&format!("returned invalid {at}: {why}")),
            })?;
            if let Err(why) = same_type(original, &object, api_version) {
                let at = if single { "object at index 0" } else { &at };
                return Err(wrong(&format!("returned invalid {at}: {why}")));
            }
            same_object(original, &object).map_err(|why| wrong(&format!("returned invalid {at}: {why}")))?;
            restore(original, &mut object).map_err(|why| {
                let at = if single { "metadata".to_owned() } else { format!("metadata in object at index {index}") };
                wrong(&format!("returned invalid {at}: {why}"))
            })?;
            Ok(object)
        });
        accepted.collect()
    }

    fn converted(&self, uid: &str, mut review: Value) -> Result<Vec<Value>, String> {
        // Of the older version neither the type nor the uid has ever been looked at.
        let strict = self.review_version() == Some("v1");
        let (api_version, kind) = (review.text("apiVersion").to_owned(), review.text("kind").to_owned());
        if strict && (api_version != format!("{GROUP}/v1") || kind != "ConversionReview") {
            return Err(format!(
                "expected webhook response of {GROUP}/v1, Kind=ConversionReview, got {api_version}, Kind={kind}"
            ));
        }
        let response = review["response"].take();
        if !response.is_object() {
            return Err("no response provided".to_owned());
        }
        let got = response.text("uid");
        if strict && got != uid {
            return Err(format!("expected response.uid={uid:?}, got {got:?}"));
        }
        let (status, message) = (response.text("result.status"), response.text("result.message"));
        match (status, message) {
            ("Success", _) => {}
            (_, "") => return Err(format!("response.result.status was '{status}', not 'Success'")),
            (_, message) => return Err(message.to_owned()),
        }
        match response {
            Value::Object(mut response) => match response.remove("convertedObjects") {
                Some(Value::Array(objects)) => Ok(objects),
                _ => Ok(Vec::new()),
            },
            _ => Ok(Vec::new()),
        }
    }
}

fn owned(texts: Vec<&str>) -> Vec<String> {
    texts.into_iter().map(str::to_owned).collect()
}

/// The group, version and kind of an object as Go prints them.
fn type_of(object: &Value) -> String {
    format!("{}, Kind={}", object.text("apiVersion"), object.text("kind"))
}

fn failed(objects: &[Value], fault: Fault, why: &str) -> Failed {
    let asked = objects.first().map(type_of).unwrap_or_default();
    Failed { fault, message: format!("conversion webhook for {asked} {why}") }
}

/// An object says what it is.
fn typed(object: &Value) -> Result<(), String> {
    if object.text("kind").is_empty() {
        return Err(format!("Object 'Kind' is missing in '{object}'"));
    }
    Ok(())
}

fn same_type(original: &Value, converted: &Value, api_version: &str) -> Result<(), String> {
    let got = converted.text("apiVersion");
    if got != api_version {
        return Err(format!("invalid groupVersion (expected {api_version}, received {got})"));
    }
    let (expected, got) = (original.text("kind"), converted.text("kind"));
    if expected != got {
        return Err(format!("invalid kind (expected {expected}, received {got})"));
    }
    Ok(())
}

/// A conversion does not make another object of it.
fn same_object(original: &Value, converted: &Value) -> Result<(), String> {
    for (field, what) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let of = |object: &Value| object["metadata"].text(field).to_owned();
        let (expected, got) = (of(original), of(converted));
        if expected != got {
            return Err(format!("must have the same {what}: {expected} != {got}"));
        }
    }
    Ok(())
}

/// Gives the converted object the metadata of the original, but for labels and annotations.
fn restore(original: &Value, converted: &mut Value) -> Result<(), String> {
    let Some(stated) = converted.get("metadata") else {
        return Err("missing metadata in converted object".to_owned());
    };
    let Some(stated) = stated.as_object() else {
        return Err(format!("invalid metadata of type {} in converted object", go_type(stated)));
    };
    let mut metadata = original["metadata"].as_object().cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        match stated.get(field) {
            None | Some(Value::Null) => {
                metadata.remove(field);
            }
            Some(Value::Object(texts)) => {
                check_texts(field, texts, metadata.get(field))?;
                metadata.insert(field.to_owned(), Value::Object(texts.clone()));
            }
            Some(other) => {
                return Err(format!("invalid metadata.{field} of type {} in converted object", go_type(other)));
            }
        }
    }
    converted["metadata"] = Value::Object(metadata);
    Ok(())
}

fn check_texts(field: &str, texts: &Map<String, Value>, before: Option<&Value>) -> Result<(), String> {
    if let Some((key, value)) = texts.iter().find(|(_, v)| !v.is_string()) {
        return Err(format!("metadata.{field}[{key}] must be a string, but is {} in converted object", go_type(value)));
    }
    let none = Map::new();
    if texts == before.and_then(Value::as_object).unwrap_or(&none) {
        return Ok(());
    }
    let (stated, path) = (Value::Object(texts.clone()), Path::new("metadata"));
    let errors: FieldErrors = match field {
        "labels" => metadata::labels(&stated, &path.child("labels")),
        // So spelled upstream.
        _ => metadata::annotations(&stated, &path.child("annotation")),
    };
    match errors.iter().map(ToString::to_string).collect::<Vec<_>>().as_slice() {
        [] => Ok(()),
        [only] => Err(only.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(versions: &[&str]) -> Webhook {
        let definition = json!({"metadata": {"name": "foos.example.com"}, "spec": {"conversion": {"strategy": "Webhook",
            "webhook": {"clientConfig": {"url": "https://x"}, "conversionReviewVersions": versions}}}});
        Webhook::new(&definition).expect("it names one")
    }

    fn foo(version: &str, name: &str) -> Value {
        json!({"apiVersion": format!("example.com/{version}"), "kind": "Foo",
            "metadata": {"name": name, "namespace": "n", "uid": "u", "generation": 3, "labels": {"a": "b"}}})
    }

    fn said(response: Value) -> Value {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response})
    }

    /// The answer to a question about one object.
    fn one(edit: impl FnOnce(&mut Value)) -> Result<Value, String> {
        let mut object = foo("v2", "a");
        edit(&mut object);
        let review = said(json!({"uid": "q", "result": {"status": "Success"}, "convertedObjects": [object]}));
        let answer = webhook(&["v1"]).answer("q", &[foo("v1", "a")], "example.com/v2", review);
        answer.map(|mut all| all.remove(0)).map_err(|e| e.message)
    }

    #[test]
    fn questions() {
        let asked = webhook(&["v9", "v1beta1", "v1"]).question("q", &[foo("v1", "a")], "example.com/v2").unwrap();
        assert_eq!(asked["apiVersion"], "apiextensions.k8s.io/v1beta1");
        assert_eq!(asked["request"]["desiredAPIVersion"], "example.com/v2");
        let failed = webhook(&["v9"]).question("q", &[], "example.com/v2").unwrap_err();
        assert_eq!(failed.message, "no supported conversion review versions");
    }

    #[test]
    fn only_labels_and_annotations_of_the_metadata_change() {
        let made = one(|o| {
            o["metadata"]["labels"] = json!({"c": "d"});
            o["metadata"]["annotations"] = json!({"x": "y"});
            o["metadata"]["generation"] = 9.into();
            o["spec"] = json!({"n": 1});
        });
        let mut want = foo("v2", "a");
        want["metadata"]["labels"] = json!({"c": "d"});
        want["metadata"]["annotations"] = json!({"x": "y"});
        want["spec"] = json!({"n": 1});
        assert_eq!(made, Ok(want));
    }

    #[test]
    fn what_is_not_believed() {
        type Edit = fn(&mut Value);
        let cases: [(Edit, &str); 9] = [
            (
                |o| o["apiVersion"] = "example.com/v1".into(),
                "object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v1)",
            ),
            (|o| o["kind"] = "Bar".into(), "object at index 0: invalid kind (expected Foo, received Bar)"),
            (|o| o["metadata"]["name"] = "b".into(), "object: must have the same name: a != b"),
            (|o| o["metadata"]["namespace"] = "m".into(), "object: must have the same namespace: n != m"),
            (|o| o["metadata"]["uid"] = "v".into(), "object: must have the same UID: u != v"),
            (
                |o| o["metadata"]["labels"] = json!([]),
                "metadata: invalid metadata.labels of type []interface {} in converted object",
            ),
            (
                |o| o["metadata"]["labels"] = json!({"a": 1}),
                "metadata: metadata.labels[a] must be a string, but is int64 in converted object",
            ),
            (|o| o["metadata"]["labels"] = json!({"a b": "c"}), "metadata: metadata.labels: Invalid value: \"a b\""),
            (
                |o| o["metadata"]["annotations"] = json!({"a b": "c"}),
                "metadata: metadata.annotation: Invalid value: \"a b\"",
            ),
        ];
        for (edit, want) in cases {
            let why = one(edit).unwrap_err();
            let want = format!("conversion webhook for example.com/v1, Kind=Foo returned invalid {want}");
            assert!(why.starts_with(&want), "{why}\n{want}");
        }
        assert!(
            one(|o| drop(o.as_object_mut().unwrap().remove("kind")))
                .unwrap_err()
                .starts_with("Object 'Kind' is missing in")
        );
    }

    #[test]
    fn answers_that_are_none() {
        let v1 = webhook(&["v1"]);
        let asked = [foo("v1", "a"), foo("v1", "b")];
        let ok = json!({"status": "Success"});
        for (review, fault, want) in [
            (
                json!({}),
                Fault::Malformed,
                "failed: expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind=",
            ),
            (said(Value::Null), Fault::Malformed, "failed: no response provided"),
            (
                said(json!({"uid": "x", "result": ok})),
                Fault::Malformed,
                "failed: expected response.uid=\"q\", got \"x\"",
            ),
            (said(json!({"uid": "q"})), Fault::Malformed, "failed: response.result.status was '', not 'Success'"),
            (
                said(json!({"uid": "q", "result": {"status": "Failure", "message": "no"}})),
                Fault::Malformed,
                "failed: no",
            ),
            (
                said(json!({"uid": "q", "result": ok, "convertedObjects": [foo("v2", "a")]})),
                Fault::Partial,
                "returned 1 objects, expected 2",
            ),
            (
                said(json!({"uid": "q", "result": ok, "convertedObjects": [foo("v2", "a"), foo("v2", "c")]})),
                Fault::Invalid,
                "returned invalid converted object at index 1: must have the same name: b != c",
            ),
        ] {
            let failed = v1.answer("q", &asked, "example.com/v2", review).unwrap_err();
            assert_eq!(failed.message, format!("conversion webhook for example.com/v1, Kind=Foo {want}"));
            assert_eq!(failed.fault, fault);
        }
        let beta = json!({"response": {"result": ok, "convertedObjects": [foo("v2", "a"), foo("v2", "b")]}});
        assert_eq!(webhook(&["v1beta1"]).answer("q", &asked, "example.com/v2", beta).map(|all| all.len()), Ok(2));
    }
}
