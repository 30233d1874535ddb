"""What a server looks after by itself: that it lives, tokens in secrets, and what services hold."""

import base64
import datetime
import json

from harness import wait

LABEL = "kubernetes.io/legacy-token-last-used"


def today():
    return datetime.datetime.now(datetime.timezone.utc).date()


def test_a_server_tells_that_it_lives(cluster):
    k = cluster.kubectl
    selector = "-l=apiserver.kubernetes.io/identity=kube-apiserver"
    (lease,) = cluster.get("leases", selector, ns="kube-system")["items"]
    host = open("/proc/sys/kernel/hostname").read().strip()
    assert lease["metadata"]["labels"]["kubernetes.io/hostname"] == host, lease
    assert lease["spec"]["leaseDurationSeconds"] == 3600, lease

    def renewed():
        return cluster.get("lease", lease["metadata"]["name"], ns="kube-system")["spec"]["renewTime"]

    wait("a renewal", lambda: renewed() > lease["spec"]["renewTime"], timeout=30)
    for hook in (
        "start-kube-apiserver-identity-lease-controller",
        "start-kube-apiserver-identity-lease-garbage-collector",
        "start-legacy-token-tracking-controller",
        "start-service-ip-repair-controllers",
    ):
        assert k("get", "--raw", f"/healthz/poststarthook/{hook}") == "ok"
        assert f"[+]poststarthook/{hook} ok" in k("get", "--raw", "/readyz?verbose")


def test_tokens_in_secrets(cluster):
    name = "kube-apiserver-legacy-service-account-token-tracking"
    since = cluster.get("configmap", name, ns="kube-system")["data"]["since"]
    assert datetime.date.fromisoformat(since) <= today()
    with cluster.namespace("token-secrets") as ns:
        cluster.kubectl("create", "serviceaccount", "robot", ns=ns)
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/service-account-token",
                "metadata": {"name": "robot", "annotations": {"kubernetes.io/service-account.name": "robot"}},
            },
            ns=ns,
        )
        data = wait("a token", lambda: (d := cluster.get("secret", "robot", ns=ns).get("data", {})).get("token") and d)
        decoded = {key: base64.b64decode(value).decode() for key, value in data.items()}
        assert decoded["namespace"] == ns and decoded["ca.crt"].startswith("-----BEGIN CERTIFICATE-----")
        config = json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
        server = config["clusters"][0]["cluster"]["server"]
        # Without the certificate of the administrator, who would be asked for first.
        alone = ["--kubeconfig=/dev/null", f"--server={server}", "--insecure-skip-tls-verify"]
        who = cluster.kubectl("auth", "whoami", "-o", "json", *alone, f"--token={decoded['token']}")
        user = json.loads(who)["status"]["userInfo"]
        assert user["username"] == f"system:serviceaccount:{ns}:robot", user
        used = cluster.get("secret", "robot", ns=ns)["metadata"]["labels"][LABEL]
        assert abs(datetime.date.fromisoformat(used) - today()).days <= 1
        cluster.kubectl("delete", "serviceaccount", "robot", ns=ns)
        wait("its secret is gone", lambda: not cluster.get("secrets", ns=ns)["items"])


def test_addresses_of_services_are_repaired(cluster):
    with cluster.namespace("repaired") as ns:
        cluster.kubectl("create", "service", "clusterip", "web", "--tcp=80", ns=ns)
        address = cluster.get("service", "web", ns=ns)["spec"]["clusterIP"]
        cluster.kubectl("delete", "ipaddress", address)

        def parent():
            found = json.loads(cluster.kubectl("get", "ipaddresses", "-o", "json"))["items"]
            return next((a["spec"]["parentRef"] for a in found if a["metadata"]["name"] == address), None)

        want = {"resource": "services", "namespace": ns, "name": "web"}
        wait("its address", lambda: parent() == want, timeout=60)
        reasons = wait("an event", lambda: [e["reason"] for e in cluster.get("events", ns=ns)["items"]])
        assert "ClusterIPNotAllocated" in reasons, reasons
