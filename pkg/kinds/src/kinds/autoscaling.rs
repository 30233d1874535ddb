//! HorizontalPodAutoscalers: stored as autoscaling/v2. autoscaling/v1 shows the CPU target as a field and everything
//! else in annotations, so that a client of v1 loses nothing.

use crate::access::{Access, map_mut, set, unset};
use crate::strategy::{PLAIN, Strategy};
use crate::validation::autoscaler;
use serde_json::{Map, Value, json};

/// Percent of the requested CPU that is aimed at where no metric is named.
const DEFAULT_CPU: i64 = 80;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

pub fn strategy(version: &str) -> Strategy {
    let base =
        Strategy { create: autoscaler::create, update: autoscaler::update, update_status: autoscaler::status, ..PLAIN };
    if version != "v1" {
        return base;
    }
    // Rules are about the stored form.
    Strategy {
        to_storage,
        from_storage,
        default: |v1| {
            // Upstream's conversion gives it, which knows the annotations.
            if !v1.has("spec.targetCPUUtilizationPercentage") && v1.entry("metadata.annotations", METRICS).is_null() {
                set(v1, "spec.targetCPUUtilizationPercentage", DEFAULT_CPU);
            }
        },
        create: |new| autoscaler::create(&converted(new)),
        update: |new, old| autoscaler::update(&converted(new), &converted(old)),
        ..base
    }
}

fn converted(v1: &Value) -> Value {
    let mut v = v1.clone();
    to_storage(&mut v);
    v
}

/// Target fields as autoscaling/v1 spells them in its annotations, by type of source.
fn target_names(kind: &str) -> [(&'static str, &'static str); 3] {
    match kind {
        "Object" => [("value", "targetValue"), ("averageValue", "averageValue"), ("", "")],
        "Pods" => [("averageValue", "targetAverageValue"), ("", ""), ("", "")],
        _ => [
            ("value", "targetValue"),
            ("averageValue", "targetAverageValue"),
            ("averageUtilization", "targetAverageUtilization"),
        ],
    }
}

fn source_field(kind: &str) -> &'static str {
    match kind {
        "Object" => "object",
        "Pods" => "pods",
        "External" => "external",
        "ContainerResource" => "containerResource",
        _ => "resource",
    }
}

/// One v2 metric as v1's annotation has it.
fn metric_to_v1(m: &Value) -> Value {
    let kind = m.text("type");
    let source = m.at(source_field(kind));
    let mut out = Map::new();
    for (from, to) in target_names(kind) {
        if let Some(v) = source.at("target").get(from).filter(|v| !v.is_null()) {
            out.insert(to.to_owned(), v.clone());
        }
    }
    for f in ["name", "container"] {
        if source.has(f) {
            out.insert(f.to_owned(), source[f].clone());
        }
    }
    let selector = if kind == "External" { "metricSelector" } else { "selector" };
    for (from, to) in [("metric.name", "metricName"), ("metric.selector", selector), ("describedObject", "target")] {
        if source.has(from) {
            out.insert(to.to_owned(), source.at(from).clone());
        }
    }
    json!({"type": kind, source_field(kind): out})
}

fn metric_from_v1(m: &Value) -> Value {
    let kind = m.text("type");
    let source = m.at(source_field(kind));
    let mut out = json!({});
    for (to, from) in target_names(kind) {
        if let Some(v) = source.get(from).filter(|v| !v.is_null()) {
            set(&mut out, &format!("target.{to}"), v.clone());
        }
    }
    let target_type = match out.at("target") {
        t if t.has("averageUtilization") => "Utilization",
        t if t.has("averageValue") => "AverageValue",
        _ => "Value",
    };
    set(&mut out, "target.type", target_type);
    let selector = if kind == "External" { "metricSelector" } else { "selector" };
    for (to, from) in
        [("name", "name"), ("container", "container"), ("metric.name", "metricName"), ("metric.selector", selector)]
    {
        if source.has(from) {
            set(&mut out, to, source[from].clone());
        }
    }
    if kind == "Object" && source.has("target") {
        set(&mut out, "describedObject", source["target"].clone());
    }
    json!({"type": kind, source_field(kind): out})
}

fn is_cpu_utilization(m: &Value) -> bool {
    m.text("type") == "Resource" && m.text("resource.name") == "cpu" && m.has("resource.target.averageUtilization")
}

fn annotation(obj: &mut Value, key: &str) -> Option<Value> {
    let text = obj.at("metadata.annotations").get(key)?.as_str()?.to_owned();
    map_mut(obj, "metadata.annotations").remove(key);
    serde_json::from_str(&text).ok()
}

fn annotate(obj: &mut Value, key: &str, v: &Value) {
    map_mut(obj, "metadata.annotations").insert(key.to_owned(), v.to_string().into());
}

fn cpu_utilization(percent: i64) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn to_storage(obj: &mut Value) {
    set(obj, "apiVersion", "autoscaling/v2");
    let mut metrics = Vec::new();
    if let Some(Value::Array(list)) = annotation(obj, METRICS) {
        metrics.extend(list.iter().map(metric_from_v1));
    }
    if let Some(n) = obj.int("spec.targetCPUUtilizationPercentage") {
        metrics.push(cpu_utilization(n));
        unset(obj, "spec.targetCPUUtilizationPercentage");
    }
    if metrics.is_empty() {
        metrics.push(cpu_utilization(DEFAULT_CPU));
    }
    set(obj, "spec.metrics", metrics);
    if let Some(v) = annotation(obj, BEHAVIOR) {
        set(obj, "spec.behavior", v);
    }
    if let Some(v) = annotation(obj, CURRENT) {
        set(obj, "status.currentMetrics", v);
    }
    if let Some(v) = annotation(obj, CONDITIONS) {
        set(obj, "status.conditions", v);
    }
    unset(obj, "status.currentCPUUtilizationPercentage");
    if obj.at("metadata.annotations").as_object().is_some_and(Map::is_empty) {
        unset(obj, "metadata.annotations");
    }
}

fn from_storage(obj: &mut Value) {
    set(obj, "apiVersion", "autoscaling/v1");
    let mut others = Vec::new();
    let mut cpu = None;
    for m in obj.list("spec.metrics") {
        match is_cpu_utilization(m) && cpu.is_none() {
            true => cpu = m.int("resource.target.averageUtilization"),
            false => others.push(metric_to_v1(m)),
        }
    }
    unset(obj, "spec.metrics");
    if let Some(n) = cpu {
        set(obj, "spec.targetCPUUtilizationPercentage", n);
    }
    if !others.is_empty() {
        annotate(obj, METRICS, &Value::Array(others));
    }
    let current = obj.list("status.currentMetrics").iter().find(|m| m.text("resource.name") == "cpu");
    let current = current.and_then(|m| m.int("resource.current.averageUtilization"));
    for (path, key) in
        [("spec.behavior", BEHAVIOR), ("status.currentMetrics", CURRENT), ("status.conditions", CONDITIONS)]
    {
        if !obj.is_empty_at(path) {
            let v = obj.at(path).clone();
            annotate(obj, key, &v);
        }
        unset(obj, path);
    }
    if let Some(n) = current {
        set(obj, "status.currentCPUUtilizationPercentage", n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_and_back_loses_nothing() {
        let v2 = json!({
            "apiVersion": "autoscaling/v2", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {"selectPolicy": "Max"}}, "metrics": [
                {"type": "Pods", "pods": {"metric": {"name": "qps"}, "target": {"type": "AverageValue", "averageValue": "10"}}},
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]},
            "status": {"conditions": [{"type": "AbleToScale", "status": "True"}]},
        });
        let mut v = v2.clone();
        from_storage(&mut v);
        assert_eq!((v.text("apiVersion"), v.int("spec.targetCPUUtilizationPercentage")), ("autoscaling/v1", Some(70)));
        assert!(v.entry_text("metadata.annotations", METRICS).contains("\"targetAverageValue\":\"10\""));
        to_storage(&mut v);
        assert_eq!(v, v2);
        let mut bare = json!({"apiVersion": "autoscaling/v1", "spec": {"maxReplicas": 3}});
        to_storage(&mut bare);
        from_storage(&mut bare);
        assert_eq!(bare.int("spec.targetCPUUtilizationPercentage"), Some(80));
    }
}
