#!/usr/bin/env python3
"""Writes pkg/auth/src/bootstrap/policy.txt from upstream's bootstrap policy, which it keeps as test data.

Usage: generate.py DIRECTORY > policy.txt, where DIRECTORY is plugin/pkg/auth/authorizer/rbac/bootstrappolicy/testdata of
the k8s.io/kubernetes module. Needs PyYAML (Debian: python3-yaml). The format is described in src/bootstrap/mod.rs.
"""
import sys

import yaml

FILES = [
    "cluster-roles",
    "cluster-role-bindings",
    "controller-roles",
    "controller-role-bindings",
    "namespace-roles",
    "namespace-role-bindings",
]
STANDARD_LABEL = "kubernetes.io/bootstrapping"


def words(values):
    return ",".join('""' if v == "" else v for v in values)


def name(meta):
    return (meta["namespace"] + "/" if "namespace" in meta else "") + meta["name"]


def subject(s):
    if s["kind"] == "ServiceAccount":
        return f"  {s['kind']} {s['namespace']}/{s['name']}"
    return f"  {s['kind']} {s['name']}"


def item(o):
    meta = o["metadata"]
    labels = [f" {k}={v}" for k, v in sorted(meta["labels"].items()) if k != STANDARD_LABEL]
    lines = [f"{o['kind']} {name(meta)}" + "".join(labels)]
    for selector in o.get("aggregationRule", {}).get("clusterRoleSelectors", []):
        lines.append("  aggregate " + ",".join(f"{k}={v}" for k, v in selector["matchLabels"].items()))
    for rule in o.get("rules") or []:
        if "nonResourceURLs" in rule:
            lines.append(f"  {words(rule['verbs'])} {words(rule['nonResourceURLs'])}")
        else:
            parts = [rule["verbs"], rule["apiGroups"], rule["resources"]]
            if "resourceNames" in rule:
                parts.append(rule["resourceNames"])
            lines.append("  " + " ".join(words(p) for p in parts))
    if "roleRef" in o:
        lines.append(f"  to {o['roleRef']['kind']} {o['roleRef']['name']}")
        lines += [subject(s) for s in o.get("subjects") or []]
    return "\n".join(lines)


def main():
    for file in FILES:
        with open(f"{sys.argv[1]}/{file}.yaml") as f:
            for o in yaml.safe_load(f)["items"]:
                print(item(o))


main()
