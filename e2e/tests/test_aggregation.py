"""An API server behind another one: what a second Isopod serves becomes part of the first one's API."""

import base64
import contextlib
import json
import os
import subprocess

from harness import Failure, wait

GROUP = "museum.example.com"
API_SERVICE = f"v1.{GROUP}"


def definition():
    spec = {"type": "object", "properties": {"year": {"type": "integer", "description": "When it was made."}}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
        "additionalPrinterColumns": [{"name": "Year", "type": "integer", "jsonPath": ".spec.year"}],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"paintings.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"plural": "paintings", "singular": "painting", "kind": "Painting"},
            "versions": [version],
        },
    }


def painting(name, year):
    return {"apiVersion": f"{GROUP}/v1", "kind": "Painting", "metadata": {"name": name}, "spec": {"year": year}}


class Behind:
    """The extension API server, beside the first one on its machine."""

    PORT = "7443"

    def __init__(self, first):
        self.first, self.data = first, f"{first.dir}/behind"
        self.kubeconfig, self.server = f"{first.dir}/behind.yaml", None

    def start(self):
        command = [
            self.first.isopod, "server", "--disable-agent", "--data-dir", self.data, "--https-listen-port", self.PORT,
            "--write-kubeconfig", self.kubeconfig, "--tls-san", "museum.default.svc",
            "--requestheader-client-ca-file", f"{self.first.data}/server/tls/request-header-ca.crt",
            "--requestheader-allowed-names", "system:auth-proxy",
        ]  # fmt: skip
        with open(f"{self.first.dir}/behind.log", "ab") as log:
            self.server = subprocess.Popen(self.first.net.inside(command), stdout=log, stderr=log, stdin=subprocess.DEVNULL)

        def ready():
            return self.kubectl("get", "--raw", "/readyz") == "ok"

        wait("the server behind", ready, 60)

    def kubectl(self, *args, input=None):
        command = [f"{self.first.tools}/kubectl-1.37", "--kubeconfig", self.kubeconfig, *args]
        done = subprocess.run(self.first.net.inside(command), input=input, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise Failure(done.stderr)
        return done.stdout.strip()

    def stop(self):
        if self.server and self.server.poll() is None:
            self.server.terminate()
            self.server.wait(30)


def available(cluster, status):
    cluster.kubectl("wait", f"--for=condition=Available={status}", "--timeout=60s", f"apiservice/{API_SERVICE}", timeout=70)


def lead(cluster, behind):
    """Makes the service and the APIService that lead there."""
    with open(f"{behind.data}/server/tls/server-ca.crt", "rb") as f:
        bundle = base64.b64encode(f.read()).decode()
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "museum", "namespace": "default"},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": API_SERVICE},
            "spec": {
                "group": GROUP,
                "version": "v1",
                "groupPriorityMinimum": 2000,
                "versionPriority": 20,
                "caBundle": bundle,
                "service": {"namespace": "default", "name": "museum", "port": int(behind.PORT)},
            },
        },
    )


def test_a_server_behind_is_part_of_the_api(fresh):
    cluster = fresh(agent=False)
    behind = Behind(cluster)
    try:
        cluster.start()
        behind.start()
        behind.kubectl("apply", "-f", "-", input=json.dumps(definition()))
        behind.kubectl("wait", "--for=condition=Established", f"crd/paintings.{GROUP}", "--timeout=20s")
        lead(cluster, behind)
        available(cluster, "True")

        assert "paintings" in cluster.kubectl("api-resources", "--api-group", GROUP)
        cluster.apply(painting("nightwatch", 1642))
        assert behind.kubectl("get", "paintings", "nightwatch", "-o", "jsonpath={.spec.year}") == "1642"
        assert cluster.kubectl("get", "paintings").split("\n")[1].split()[:2] == ["nightwatch", "1642"]
        wait("the schema", lambda: "When it was made." in cluster.kubectl("explain", "paintings.spec.year"))

        watch = subprocess.Popen(
            cluster.kubectl_args("get", "paintings", "--watch-only", "-o", "name"),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=cluster.env(),
        )  # fmt: skip
        with contextlib.closing(watch.stdout):
            behind.kubectl("apply", "-f", "-", input=json.dumps(painting("milkmaid", 1658)))
            # The watch may begin after the first one: it is changed until it is seen.
            os.set_blocking(watch.stdout.fileno(), False)

            def seen():
                year = len(seen.tried) + 1660
                seen.tried.append(year)
                behind.kubectl("apply", "-f", "-", input=json.dumps(painting("milkmaid", year)))
                return "milkmaid" in (watch.stdout.read() or "")

            seen.tried = []
            wait("an event", seen, 30, every=0.3)
            watch.kill()
            watch.wait()

        # Who asks is told: a user with every right here has none there.
        cluster.kubectl("create", "clusterrolebinding", "all", "--clusterrole=cluster-admin", "--user=nobody")
        denied = cluster.kubectl("get", "paintings", "--as", "nobody", check=False, full=True)
        assert "forbidden" in denied.stderr, denied.stderr

        behind.stop()
        cluster.kubectl("annotate", "service", "museum", "look=again")
        available(cluster, "False")
        told = cluster.kubectl("get", "paintings", check=False, full=True)
        assert told.returncode and "unable to handle the request" in told.stderr, told.stderr
        cluster.kubectl("get", "configmaps")
        cluster.kubectl("delete", "apiservice", API_SERVICE)
    finally:
        behind.stop()
        cluster.close()
