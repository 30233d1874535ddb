"""Custom resources as a user of kubectl meets them, and what the cluster does with them by itself."""

import json

from harness import wait

GROUP = "shop.example.com"
VERSIONS = ("1.37", "1.32")


def definition(plural="widgets", kind="Widget"):
    spec = {
        "type": "object",
        "required": ["size"],
        "properties": {
            "size": {"type": "integer", "minimum": 1, "description": "How large it is."},
            "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
            "replicas": {"type": "integer"},
        },
    }
    status = {"type": "object", "properties": {"replicas": {"type": "integer"}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "shortNames": [plural[0] + "x"]},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
                    "subresources": {
                        "status": {},
                        "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"},
                    },
                    "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                }
            ],
        },
    }


def widget(name, **spec):
    meta = {"name": name, **spec.pop("metadata", {})}
    return {"apiVersion": f"{GROUP}/v1", "kind": "Widget", "metadata": meta, "spec": {"size": 1, **spec}}


def defined(cluster, *args):
    cluster.apply(definition(*args))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{definition(*args)['metadata']['name']}")


def test_kubectl_treats_them_as_its_own(cluster):
    defined(cluster)
    for version in VERSIONS:
        with cluster.namespace(f"custom-{version.replace('.', '-')}") as ns:

            def k(*args, **kw):
                return cluster.kubectl(*args, version=version, ns=ns, **kw)

            done = k("apply", "-f", "-", input=json.dumps(widget("a", replicas=1)))
            assert done == f"widget.{GROUP}/a created\n", done
            rows = [line.split() for line in k("get", "wx").splitlines()]
            assert rows[0] == ["NAME", "SIZE"] and rows[1] == ["a", "1"], rows
            assert k("get", "widget", "a", "-o", "jsonpath={.spec.color}") == "red"
            assert "How large it is." in k("explain", "widgets.spec.size")
            k("scale", "widget/a", "--replicas=3")
            assert k("get", "widget", "a", "-o", "jsonpath={.spec.replicas}") == "3"
            for bad, words in [
                (widget("b", size=0), "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"),
                (widget("b", color="green"), 'spec.color: Unsupported value: "green": supported values: "red", "blue"'),
                (widget("b", colour="red"), 'unknown field "spec.colour"'),
            ]:
                refused = k("apply", "-f", "-", input=json.dumps(bad), check=False, full=True)
                assert refused.returncode != 0 and words in refused.stderr, refused
            done = k("apply", "--server-side", "-f", "-", input=json.dumps(widget("c", size=2)))
            assert done == f"widget.{GROUP}/c serverside-applied\n", done
            k("patch", "widget", "c", "--type=merge", "-p", '{"spec":{"size":5}}')
            assert k("get", "widgets", "c", "-o", "jsonpath={.spec.size}") == "5"
            k("delete", "widget", "--all")


def test_they_are_there_again_after_a_kill(fresh):
    cluster = fresh(agent=False).start()
    try:
        defined(cluster)
        cluster.apply(widget("kept", size=7), ns="default")
        cluster.kill()
        cluster.start()
        assert cluster.kubectl("get", "widget", "kept", "-o", "jsonpath={.spec.size}", ns="default") == "7"
        cluster.kubectl("delete", "crd", f"widgets.{GROUP}", "--timeout=30s")
        gone = cluster.kubectl("get", "widgets", ns="default", check=False, full=True)
        assert gone.returncode != 0 and "NotFound" in gone.stderr, gone
        # What comes under the same name begins empty.
        defined(cluster)
        assert cluster.get("widgets", ns="default")["items"] == []
    finally:
        cluster.close()


def test_owners_and_namespaces_take_them_along(cluster):
    defined(cluster)
    with cluster.namespace("custom-owners") as ns:
        cluster.apply(widget("owner"), ns=ns)
        uid = cluster.get("widget", "owner", ns=ns)["metadata"]["uid"]
        owner = {"apiVersion": f"{GROUP}/v1", "kind": "Widget", "name": "owner", "uid": uid}
        below = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "below", "ownerReferences": [owner]}}
        cluster.apply(below, widget("beside"), ns=ns)
        cluster.kubectl("delete", "widget", "owner", ns=ns)
        wait("the dependent goes", lambda: not names(cluster, "configmaps", ns) & {"below"})
        assert names(cluster, "widgets", ns) == {"beside"}
    # The namespace went with what was left in it.
    assert cluster.get("widgets", "-A")["items"] == []


def names(cluster, resource, ns):
    return {o["metadata"]["name"] for o in cluster.get(resource, ns=ns)["items"]}
