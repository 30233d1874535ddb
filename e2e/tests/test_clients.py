"""Clients that others wrote, unmodified: helm, Go's client-go, Rust's kube, the Python clients, an operator, and every kubectl that is still in use."""

import contextlib
import json
import os
import subprocess
import sys

from harness import HERE, run, wait

CLIENTS = os.path.join(HERE, "clients")
KUBECTLS = ("1.32", "1.33", "1.34", "1.35", "1.36", "1.37")


def helm(cluster, ns, *args, check=True, timeout=120):
    env = cluster.env() | {"HELM_CACHE_HOME": f"{cluster.dir}/helm", "HELM_CONFIG_HOME": f"{cluster.dir}/helm"}
    where = ["--kubeconfig", cluster.kubeconfig, "-n", ns]
    return run(cluster.net.inside([f"{cluster.tools}/helm", *where, *args]), check=check, timeout=timeout, env=env)


def python(cluster, script, *args):
    env = cluster.env() | {"PYTHONPATH": f"{cluster.tools}/clients-python"}
    done = run(cluster.net.inside([sys.executable, f"{CLIENTS}/python/{script}", *args]), env=env, timeout=150)
    assert done.stdout.endswith("ok\n"), done


def status(cluster, ns, release):
    return json.loads(helm(cluster, ns, "status", release, "-o", "json").stdout)


def test_helm_release_with_hooks(cluster):
    with cluster.namespace("helm-web") as ns:
        chart, images = f"{CLIENTS}/charts/web", ["--set", f"image.repository={cluster.image('app')}"]
        images += ["--set", f"hooks.image={cluster.image('busybox:1.36')}"]
        refused = helm(cluster, ns, "install", "shop", chart, *images, "--set", "replicaCount=-1", check=False)
        assert refused.returncode != 0 and "replicaCount" in refused.stderr, refused
        helm(cluster, ns, "install", "shop", chart, *images, "--wait", "--timeout", "90s")
        assert "runs 1 replicas of v1" in status(cluster, ns, "shop")["info"]["notes"]
        assert cluster.get("deployment", "shop", ns=ns)["status"]["readyReplicas"] == 1
        # The hook's job ran before, and is gone.
        assert cluster.get("jobs", ns=ns)["items"] == []
        helm(cluster, ns, "test", "shop", "--timeout", "60s")

        helm(cluster, ns, "upgrade", "shop", chart, *images, "--set", "replicaCount=2,image.tag=v2", "--wait", "--timeout", "90s")
        pods = cluster.get("pods", "-l", "app.kubernetes.io/instance=shop", "--field-selector=status.phase=Running", ns=ns)["items"]
        assert {p["spec"]["containers"][0]["image"] for p in pods if "deletionTimestamp" not in p["metadata"]} == {cluster.image("app:v2")}
        assert cluster.get("poddisruptionbudget", "shop", ns=ns)["spec"]["maxUnavailable"] == 1

        fails = ["--set", "replicaCount=2,image.tag=v2,hooks.fail=true"]
        failed = helm(cluster, ns, "upgrade", "shop", chart, *images, *fails, "--timeout", "60s", check=False)
        assert failed.returncode != 0 and "pre-upgrade hooks failed" in failed.stderr, failed
        helm(cluster, ns, "rollback", "shop", "1", "--wait", "--timeout", "90s")
        live = cluster.get("deployment", "shop", ns=ns)
        assert live["spec"]["replicas"] == 1 and live["spec"]["template"]["spec"]["containers"][0]["image"] == cluster.image("app:v1")
        assert cluster.get("poddisruptionbudgets", ns=ns)["items"] == []
        assert [r["status"] for r in json.loads(helm(cluster, ns, "history", "shop", "-o", "json").stdout)][-1] == "deployed"
        helm(cluster, ns, "uninstall", "shop", "--wait", "--timeout", "60s")
        assert cluster.get("deployments,services,configmaps,serviceaccounts", "-l", "app.kubernetes.io/instance=shop", ns=ns)["items"] == []


def test_helm_chart_with_definitions(cluster):
    with cluster.namespace("helm-platform") as ns:
        chart = f"{CLIENTS}/charts/platform"
        helm(cluster, ns, "install", "db", chart, "--wait", "--timeout", "60s")
        assert cluster.get("database", "db", ns=ns)["spec"]["size"] == 1
        helm(cluster, ns, "upgrade", "db", chart, "--set", "size=3")
        assert cluster.get("database", "db", ns=ns)["spec"]["size"] == 3

        # Its own policy refuses this one, as soon as the server has taken it up.
        def refused():
            done = helm(cluster, ns, "upgrade", "db", chart, "--set", "size=11", check=False)
            return done.returncode != 0 and "a database has 10 replicas at most" in done.stderr

        wait("the chart's policy", refused, 30)
        helm(cluster, ns, "rollback", "db", "1")
        assert cluster.get("database", "db", ns=ns)["spec"]["size"] == 1
        helm(cluster, ns, "uninstall", "db", "--wait")
        # Definitions of crds/ stay, by helm's rule.
        assert cluster.get("databases", ns=ns)["items"] == []
        cluster.kubectl("delete", "crd", "databases.charts.example.com")


def test_helm_looks_up_what_is_there(cluster):
    with cluster.namespace("helm-secret") as ns:
        chart = f"{CLIENTS}/charts/secret"
        helm(cluster, ns, "install", "key", chart)
        before = cluster.get("secret", "key", ns=ns)
        assert before["metadata"]["annotations"]["nodes"] == "1"
        helm(cluster, ns, "upgrade", "key", chart)
        assert cluster.get("secret", "key", ns=ns)["data"] == before["data"]
        helm(cluster, ns, "uninstall", "key")
        assert cluster.get("secret", "key", ns=ns)["data"] == before["data"], "helm.sh/resource-policy: keep"


def test_go_client(cluster):
    with cluster.namespace("client-go") as ns:
        program = [f"{cluster.tools}/clients-go", cluster.kubeconfig, ns, cluster.image("busybox:1.36")]
        print(run(cluster.net.inside(program), timeout=150).stdout, end="")


def test_rust_client(cluster):
    with cluster.namespace("client-rust") as ns:
        program = [f"{os.path.dirname(cluster.isopod)}/isopod-e2e-kube", cluster.kubeconfig, ns, cluster.image("busybox:1.36")]
        print(run(cluster.net.inside(program), timeout=150).stdout, end="")


def test_python_client(cluster):
    with cluster.namespace("client-python") as ns:
        python(cluster, "official.py", cluster.kubeconfig, ns, cluster.image("busybox:1.36"))


def test_kr8s_client(cluster):
    with cluster.namespace("client-kr8s") as ns:
        python(cluster, "asynchronous.py", cluster.kubeconfig, ns, cluster.image("app:v1"))


def stacks():
    schema = {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "properties": {"layers": {"type": "integer"}}},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "stacks.operators.example.com"},
        "spec": {
            "group": "operators.example.com",
            "scope": "Namespaced",
            "names": {"plural": "stacks", "singular": "stack", "kind": "Stack"},
            "versions": [version],
        },
    }


@contextlib.contextmanager
def operator(cluster, ns):
    env = cluster.env() | {"PYTHONPATH": f"{cluster.tools}/clients-python", "KUBECONFIG": cluster.kubeconfig}
    args = [sys.executable, "-m", "kopf", "run", "--standalone", "-n", ns, f"{CLIENTS}/python/stacks.py"]
    with open(f"{cluster.dir}/kopf.log", "w+") as log:
        process = subprocess.Popen(cluster.net.inside(args), env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            yield
        except BaseException:
            log.seek(0)
            print(log.read()[-4000:])
            raise
        finally:
            process.terminate()
            process.wait(30)


def test_kopf_operator(cluster):
    cluster.apply(stacks())
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/stacks.operators.example.com")

    def stack(name, layers):
        cluster.apply({"apiVersion": "operators.example.com/v1", "kind": "Stack", "metadata": {"name": name}, "spec": {"layers": layers}}, ns=ns)

    def layers(name):
        live = cluster.get("stack", name, ns=ns)
        made = cluster.get("configmap", f"{name}-layers", ns=ns)
        assert made["metadata"]["ownerReferences"][0]["uid"] == live["metadata"]["uid"]
        return live["status"]["layers"], made["data"]["layers"], live["metadata"]["finalizers"]

    finalizers = ["stacks.operators.example.com/finalizer"]
    with cluster.namespace("kopf") as ns, operator(cluster, ns):
        stack("a", 2)
        wait("the operator", lambda: layers("a") == (2, "2", finalizers), 60)
        stack("a", 5)
        wait("the change", lambda: layers("a") == (5, "5", finalizers))
        stack("tall", 10)
        wait("an event", lambda: "too high" in cluster.kubectl("get", "events", "--field-selector=involvedObject.name=tall", ns=ns))
        # The finalizer's work is done before it goes, and what it owns goes with it.
        cluster.kubectl("delete", "stack", "a", "tall", "--timeout=60s", ns=ns, timeout=70)
        assert cluster.get("configmap", "a-was-here", ns=ns)
        wait("the garbage collector", lambda: "a-layers" not in cluster.kubectl("get", "configmaps", ns=ns))
    cluster.kubectl("delete", "crd", "stacks.operators.example.com")


def test_every_kubectl(cluster):
    with cluster.namespace("kubectls") as ns:
        for version in KUBECTLS:
            name = f"c-{version.replace('.', '-')}"

            def k(*args, **kw):
                return cluster.kubectl(*args, version=version, ns=ns, **kw)

            text = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
            assert k("apply", "-f", "-", input=text) == f"configmap/{name} created\n"
            assert k("apply", "-f", "-", input=text) == f"configmap/{name} unchanged\n"
            changed = text.replace('"1"', '"2"')
            assert k("diff", "-f", "-", input=changed, check=False, full=True).returncode == 1
            k("apply", "--server-side", "--force-conflicts", "-f", "-", input=changed)
            k("label", "configmap", name, "by=" + name)
            assert k("get", "configmap", "-l", "by=" + name, "-o", "name") == f"configmap/{name}\n"
            k("patch", "configmap", name, "--type=json", "-p", '[{"op":"add","path":"/data/b","value":"3"}]')
            assert k("get", "configmap", name, "-o", "jsonpath={.data}") == '{"a":"2","b":"3"}'
            assert "FIELDS" in k("explain", "deployment.spec") and "configmaps" in k("api-resources")
            assert k("auth", "can-i", "delete", "pods") == "yes\n"
            assert name in k("describe", "configmap", name)
            k("wait", "--for=create", "configmap/" + name, "--timeout=10s")
            k("delete", "configmap", name)
            gone = k("get", "configmap", name, check=False, full=True)
            assert gone.returncode == 1 and f'configmaps "{name}" not found' in gone.stderr, gone
