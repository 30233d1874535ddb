"""A kopf operator: for each Stack it makes a ConfigMap that goes with it, tells in its status, and cleans up by a finalizer."""

import kopf
import kubernetes


@kopf.on.startup()
def settings(settings, **_):
    settings.persistence.finalizer = "stacks.operators.example.com/finalizer"


@kopf.on.create("operators.example.com", "v1", "stacks")
@kopf.on.update("operators.example.com", "v1", "stacks", field="spec.layers")
def build(spec, name, namespace, patch, body, **_):
    if spec["layers"] > 9:
        kopf.warn(body, reason="TooHigh", message=f"{spec['layers']} layers are too high")
        raise kopf.PermanentError("too high")
    core = kubernetes.client.CoreV1Api()
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-layers"}, "data": {"layers": str(spec["layers"])}}
    kopf.adopt(config)
    try:
        core.create_namespaced_config_map(namespace, config)
    except kubernetes.client.ApiException as e:
        if e.status != 409:
            raise
        core.patch_namespaced_config_map(f"{name}-layers", namespace, config)
    patch.status["layers"] = spec["layers"]
    return {"built": spec["layers"]}


@kopf.on.delete("operators.example.com", "v1", "stacks")
def farewell(name, namespace, **_):
    text = {"metadata": {"name": f"{name}-was-here"}}
    kubernetes.client.CoreV1Api().create_namespaced_config_map(namespace, text)
