//! Definitions and what is wrong with them.

use super::*;
use serde_json::json;

fn definition(change: impl FnOnce(&mut Value)) -> Value {
    let mut d = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "conversion": {"strategy": "None"},
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "properties": {"spec": {"type": "object", "properties":
                    {"color": {"type": "string"}}}}}}}],
        },
        "status": {"storedVersions": ["v1"]},
    });
    change(&mut d);
    d
}

fn say(errs: FieldErrors) -> Vec<String> {
    errs.iter().map(ToString::to_string).collect()
}

/// The errors of a definition whose only version has this schema.
fn of_schema(schema: Value) -> Vec<String> {
    let cut = "spec.validation.openAPIV3Schema";
    let d = definition(|d| d["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema);
    say(create(&d)).iter().map(|e| e.strip_prefix(cut).unwrap_or(e).to_owned()).collect()
}

#[test]
fn good_definitions() {
    assert_eq!(say(create(&definition(|_| {}))), [""; 0]);
    let d = definition(|_| {});
    assert_eq!(say(update(&d, &d)), [""; 0]);
    assert_eq!(name(&d, "things.example.com", false), [""; 0]);
    assert_eq!(name(&d, "other.example.com", false), [r#"must be spec.names.plural+"."+spec.group"#]);
}

#[test]
fn what_versions_have_in_common_stands_beside_them() {
    let lifted = lift(definition(|_| {}).at("spec"));
    assert!(lifted.has("validation.openAPIV3Schema") && !lifted.list("versions")[0].has("schema"));
    let two = definition(|d| {
        let other = json!({"name": "v2", "schema": {"openAPIV3Schema": {"type": "object"}}});
        d["spec"]["versions"].as_array_mut().unwrap().push(other);
    });
    let lifted = lift(two.at("spec"));
    assert!(!lifted.has("validation") && lifted.list("versions")[0].has("schema"));
}

#[test]
fn specs() {
    let cases: [(fn(&mut Value), &[&str]); 8] = [
        (
            |d| d["spec"]["group"] = "flat".into(),
            &["spec.group: Invalid value: \"flat\": should be a domain with at least one dot"],
        ),
        (
            |d| d["spec"]["versions"][0]["storage"] = false.into(),
            &[
                "spec.versions: Invalid value: [{\"name\":\"v1\",\"served\":true,\"storage\":false}]: must have exactly one version marked as storage version",
            ],
        ),
        (
            |d| d["spec"]["names"]["listKind"] = "Thing".into(),
            &["spec.names.listKind: Invalid value: \"Thing\": kind and listKind may not be the same"],
        ),
        (
            |d| {
                d["spec"]["versions"][0]["additionalPrinterColumns"] =
                    json!([{"name": "a", "type": "x", "jsonPath": "b"}])
            },
            &[
                "spec.additionalPrinterColumns[0].type: Invalid value: \"x\": must be one of boolean,date,integer,number,string",
                "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"b\": must be a simple json path starting with .",
            ],
        ),
        (
            |d| d["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec"}]),
            &[
                "spec.selectableFields[0].jsonPath: Invalid value: \".spec\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ],
        ),
        (
            |d| d["spec"]["versions"][0]["subresources"] = json!({"scale": {"specReplicasPath": ".status.n"}}),
            &[
                "spec.subresources.scale.specReplicasPath: Invalid value: \".status.n\": should be a json path under .spec",
                "spec.subresources.scale.statusReplicasPath: Required value",
            ],
        ),
        (
            |d| {
                d["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v2"],
                "clientConfig": {"url": "https://a/b"}}})
            },
            &[
                "spec.conversion.conversionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
            ],
        ),
        (
            |d| d["spec"]["group"] = "x.k8s.io".into(),
            &[
                "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
            ],
        ),
    ];
    for (change, wanted) in cases {
        assert_eq!(say(create(&definition(change))), wanted);
    }
}

#[test]
fn schemas() {
    let with = |property: Value| of_schema(json!({"type": "object", "properties": {"a": property}}));
    let cases = [
        (json!({"type": "string"}), vec![]),
        (json!({}), vec![".properties[a].type: Required value: must not be empty for specified object fields"]),
        (json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}), vec![]),
        (
            json!({"type": "integer", "anyOf": [{"type": "integer"}]}),
            vec![".properties[a].anyOf[0].type: Forbidden: must be empty to be structural"],
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                "items": {"type": "object", "properties": {"n": {"type": "string"}}}}),
            vec![
                ".properties[a].items.properties[n].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ],
        ),
        (
            json!({"type": "object", "default": {"b": 1}}),
            vec![".properties[a].default: Invalid value: {\"b\":1}: must not have unknown fields"],
        ),
        (
            json!({"type": "integer", "default": "x"}),
            vec![
                ".properties[a].default: Invalid value: \"string\": spec.validation.openAPIV3Schema.properties[a].default in body must be of type integer: \"string\"",
            ],
        ),
        (json!({"type": "string", "$ref": "x"}), vec![".properties[a].$ref: Forbidden: $ref is not supported"]),
        (
            json!({"type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            vec![
                ".properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
            ],
        ),
    ];
    for (property, wanted) in cases {
        assert_eq!(with(property.clone()), wanted, "{property}");
    }
}

#[test]
fn what_junctors_speak_of_stands_in_the_structure() {
    let wanted = [
        ".properties[b]: Required value: because it is defined in spec.validation.openAPIV3Schema.allOf[0].properties[b]",
    ];
    let root = json!({"type": "object", "allOf": [{"required": ["b"], "properties": {"b": {"minimum": 1}}}]});
    assert_eq!(of_schema(root.clone()), wanted);
    // Upstream looks at the junctors of the root alone.
    assert_eq!(of_schema(json!({"type": "object", "properties": {"a": root}})), [""; 0]);
}

#[test]
fn rules_speak_of_the_schema() {
    let spec = json!({"type": "object", "properties": {"n": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.n < 3"}, {"rule": "self.m < 3", "message": "no"}]});
    assert_eq!(
        of_schema(json!({"type": "object", "properties": {"spec": spec}})),
        [
            ".properties[spec].x-kubernetes-validations[1].rule: Invalid value: {\"Rule\":\"self.m \\u003c 3\",\"Message\":\"no\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: compilation failed: ERROR: <input>:1:5: undefined field 'm'\n | self.m < 3\n | ....^"
        ]
    );
}

#[test]
fn an_update_may_keep_what_was_wrong() {
    let loose = definition(|d| {
        d["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({"type": "object",
        "properties": {"a": {"type": "strange"}}})
    });
    assert_eq!(create(&loose).len(), 1);
    assert_eq!(say(update(&loose, &loose)), [""; 0]);
    let renamed = definition(|d| d["spec"]["group"] = "other.com".into());
    let wanted = ["spec.group: Invalid value: \"other.com\": field is immutable"];
    assert_eq!(say(update(&renamed, &definition(|_| {}))), wanted);
}

#[test]
fn warnings_tell_of_formats_and_sets() {
    let d = definition(|d| {
        d["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({"type": "object", "properties": {
            "a": {"type": "string", "format": "strange"}, "b": {"type": "string", "format": "date-time"},
            "c": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}}}});
    });
    let told = warnings(&d, None);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "unrecognized format \"strange\"");
    assert_eq!(warnings(&d, Some(&d)), [""; 0]);
}
