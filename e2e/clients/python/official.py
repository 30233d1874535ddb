"""The official Python client: typed and dynamic calls, patches, a watch that is resumed, logs, exec."""

import sys
import threading

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.stream import stream

kubeconfig, namespace, image = sys.argv[1:]
config.load_kube_config(kubeconfig)
core, roles = client.CoreV1Api(), client.RbacAuthorizationV1Api()

# Objects of its own types, and from dicts.
core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="typed"), data={"a": "1"}))
utils.create_from_dict(
    client.ApiClient(),
    {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "dict", "namespace": namespace}, "stringData": {"k": "v"}},
)
assert core.read_namespaced_secret("dict", namespace).data == {"k": "dg=="}

# Patches: strategic merge of dicts, JSON patch of lists.
core.patch_namespaced_config_map("typed", namespace, {"data": {"b": "2"}})
core.patch_namespaced_config_map("typed", namespace, [{"op": "remove", "path": "/data/a"}])
assert core.read_namespaced_config_map("typed", namespace).data == {"b": "2"}

try:
    core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="typed")))
    raise SystemExit("made twice")
except client.ApiException as e:
    assert e.status == 409 and '"reason":"AlreadyExists"' in e.body, e

# A watch from a list on: what happened between the two is not lost.
begin = core.list_namespaced_config_map(namespace).metadata.resource_version
core.patch_namespaced_config_map("typed", namespace, {"data": {"c": "3"}})
core.delete_namespaced_config_map("typed", namespace)
seen = []
for event in watch.Watch().stream(core.list_namespaced_config_map, namespace, resource_version=begin, timeout_seconds=20):
    seen.append((event["type"], event["object"].metadata.name))
    if event["type"] == "DELETED":
        break
assert seen == [("MODIFIED", "typed"), ("DELETED", "typed")], seen

# The dynamic client finds kinds by discovery, and applies.
found = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="ConfigMap")
applied = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"x": "y"}}
made = found.server_side_apply(body=applied, namespace=namespace, field_manager="tests")
assert made.data.x == "y" and made.metadata.managedFields[0].operation == "Apply", made

# A pod, its logs, a command in it.
command = ["sh", "-c", "echo hello; exec sleep 1000"]
pod = client.V1Pod(
    metadata=client.V1ObjectMeta(name="talker"),
    spec=client.V1PodSpec(
        termination_grace_period_seconds=0, containers=[client.V1Container(name="main", image=image, command=command)]
    ),
)
core.create_namespaced_pod(namespace, pod)
running = watch.Watch()
for event in running.stream(core.list_namespaced_pod, namespace, field_selector="metadata.name=talker", timeout_seconds=60):
    if event["object"].status.phase == "Running":
        running.stop()
for line in watch.Watch().stream(core.read_namespaced_pod_log, "talker", namespace):
    assert line == "hello", line
    break
session = stream(
    core.connect_get_namespaced_pod_exec, "talker", namespace, command=["sh", "-c", "read x; echo got $x; exit 3"],
    stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False,
)  # fmt: skip
session.write_stdin("word\n")
session.run_forever(timeout=20)
assert session.read_stdout() == "got word\n" and session.returncode == 3, session.returncode

# Lists in pages, and from many threads at once.
failures = []


def read():
    try:
        names, token = [], None
        while True:
            page = roles.list_cluster_role(limit=20, _continue=token)
            names += [item.metadata.name for item in page.items]
            token = page.metadata._continue
            if not token:
                break
        assert len(names) == len(set(names)) and "cluster-admin" in names, names
    except BaseException as e:
        failures.append(e)


threads = [threading.Thread(target=read) for _ in range(8)]
for t in threads:
    t.start()
for t in threads:
    t.join()
assert not failures, failures
core.delete_namespaced_pod("talker", namespace)
print("ok")
