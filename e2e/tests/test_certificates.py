"""The certificates API with stock openssl and kubectl: a node joins as kubeadm lets it join, and users get certificates."""

import base64
import json
import os

from harness import run, wait

TOKEN_ID, TOKEN_SECRET = "abcdef", "0123456789abcdef"
JOINING = "system:bootstrappers:kubeadm:default-node-token"
CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET = "kubernetes.io/kube-apiserver-client-kubelet"
SERVING = "kubernetes.io/kubelet-serving"


class People:
    """Keys, requests and kubeconfigs of those who come to the cluster."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.server = json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json"))["clusters"]

    def path(self, name):
        return os.path.join(self.cluster.dir, name)

    def request(self, name, subject, *san):
        """A new key, and a request that is signed with it."""
        args = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject]
        names = ["-addext", f"subjectAltName={','.join(san)}"] if san else []
        run([*args, *names, "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.csr")])
        with open(self.path(f"{name}.csr"), "rb") as f:
            return base64.b64encode(f.read()).decode()

    def ask(self, name, signer, request, usages, who=(), **spec):
        spec |= {"request": request, "signerName": signer, "usages": usages}
        body = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name}, "spec": spec}
        self.cluster.kubectl(*who, "create", "-f", "-", input=json.dumps(body))

    def certificate(self, name, file):
        """Waits for the certificate and keeps it beside its key."""

        def issued():
            return self.cluster.get("csr", name)["status"].get("certificate")

        with open(self.path(f"{file}.crt"), "wb") as f:
            f.write(base64.b64decode(wait(f"the certificate of {name}", issued, 30)))
        return self.path(f"{file}.crt")

    def kubeconfig(self, name, **user):
        """Flags of kubectl."""
        context = [{"name": "it", "context": {"cluster": self.server[0]["name"], "user": "it"}}]
        config = {"apiVersion": "v1", "kind": "Config", "clusters": self.server, "contexts": context, "current-context": "it",
                  "users": [{"name": "it", "user": user}]}  # fmt: skip
        with open(self.path(f"{name}.kubeconfig"), "w") as f:
            json.dump(config, f)
        return ["--kubeconfig", self.path(f"{name}.kubeconfig")]

    def with_certificate(self, name):
        files = {"client-certificate": self.path(f"{name}.crt"), "client-key": self.path(f"{name}.key")}
        return self.kubeconfig(name, **files)

    def condition(self, name, kind):
        conditions = self.cluster.get("csr", name)["status"].get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), None)


def conditions_shown(cluster, name):
    return cluster.kubectl("get", "csr", name, "--no-headers").split()[-1]


def test_a_node_joins_with_a_token(fresh):
    cluster = fresh(agent=False, server_args=["--enable-bootstrap-token-auth"]).start()
    try:
        people = People(cluster)
        secret = {"token-id": TOKEN_ID, "token-secret": TOKEN_SECRET, "usage-bootstrap-authentication": "true", "auth-extra-groups": JOINING}
        # What `kubeadm init` leaves for those who join.
        cluster.apply(
            {"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token", "stringData": secret,
             "metadata": {"name": f"bootstrap-token-{TOKEN_ID}", "namespace": "kube-system"}},
        )  # fmt: skip
        self_service = "system:certificates.k8s.io:certificatesigningrequests"
        for name, role, group in (
            ("kubelet-bootstrap", "system:node-bootstrapper", JOINING),
            ("node-autoapprove-bootstrap", f"{self_service}:nodeclient", JOINING),
            ("node-autoapprove-certificate-rotation", f"{self_service}:selfnodeclient", "system:nodes"),
        ):
            cluster.kubectl("create", "clusterrolebinding", f"kubeadm:{name}", f"--clusterrole={role}", f"--group={group}")
        usages = ["digital signature", "client auth"]
        joining = people.kubeconfig("joining", token=f"{TOKEN_ID}.{TOKEN_SECRET}")
        people.ask("node-csr-1", KUBELET, people.request("node", "/O=system:nodes/CN=system:node:new"), usages, joining)
        people.certificate("node-csr-1", "node")
        assert people.condition("node-csr-1", "Approved")["reason"] == "AutoApproved"
        node = people.with_certificate("node")
        who = json.loads(cluster.kubectl(*node, "auth", "whoami", "-o", "json"))["status"]["userInfo"]
        assert (who["username"], who["groups"]) == ("system:node:new", ["system:nodes", "system:authenticated"]), who

        # It is that node, and no other.
        def body(name):
            return json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})

        cluster.kubectl(*node, "create", "-f", "-", input=body("new"))
        denied = cluster.kubectl(*node, "create", "-f", "-", input=body("other"), check=False, full=True)
        assert "is not allowed to modify node" in denied.stderr, denied.stderr

        # It renews its certificate by itself, and asks for one to show, which somebody has to approve.
        people.ask("node-csr-2", KUBELET, people.request("again", "/O=system:nodes/CN=system:node:new"), usages, node)
        people.certificate("node-csr-2", "again")
        assert "self kubelet" in people.condition("node-csr-2", "Approved")["message"]
        again = people.with_certificate("again")
        shown = people.request("shown", "/O=system:nodes/CN=system:node:new", "DNS:new", "IP:192.0.2.9")
        people.ask("node-serving", SERVING, shown, ["digital signature", "server auth"], again)
        assert conditions_shown(cluster, "node-serving") == "Pending"
        cluster.kubectl("certificate", "approve", "node-serving")
        certificate = people.certificate("node-serving", "shown")
        with open(people.path("root.crt"), "w") as f:
            f.write(cluster.get("configmap", "kube-root-ca.crt")["data"]["ca.crt"])
        run(["openssl", "verify", "-CAfile", people.path("root.crt"), "-purpose", "sslserver", "-verify_hostname", "new", certificate])
    finally:
        cluster.close()


def test_people_get_certificates(fresh):
    cluster = fresh(agent=False).start()
    try:
        people = People(cluster)
        people.ask("jane", CLIENT, people.request("jane", "/O=devs/O=ops/CN=jane"), ["client auth"], expirationSeconds=3600)
        assert conditions_shown(cluster, "jane") == "Pending"
        cluster.kubectl("certificate", "approve", "jane")
        certificate = people.certificate("jane", "jane")
        assert conditions_shown(cluster, "jane") == "Approved,Issued"
        jane = people.with_certificate("jane")
        who = json.loads(cluster.kubectl(*jane, "auth", "whoami", "-o", "json"))["status"]["userInfo"]
        assert (who["username"], sorted(who["groups"])) == ("jane", ["devs", "ops", "system:authenticated"]), who
        # An hour; and not longer.
        assert run(["openssl", "x509", "-in", certificate, "-noout", "-checkend", "3500"], check=False).returncode == 0
        assert run(["openssl", "x509", "-in", certificate, "-noout", "-checkend", "3700"], check=False).returncode == 1

        people.ask("no", CLIENT, people.request("no", "/CN=no"), ["client auth"])
        cluster.kubectl("certificate", "deny", "no")
        assert conditions_shown(cluster, "no") == "Denied"
        assert "certificate" not in cluster.get("csr", "no")["status"]
        late = cluster.kubectl("certificate", "approve", "no", check=False, full=True)
        assert late.returncode != 0, late.stdout

        # Approved, and yet not signed: it says why.
        people.ask("wrong", SERVING, people.request("wrong", "/O=system:nodes/CN=system:node:x"), ["digital signature", "server auth"])
        cluster.kubectl("certificate", "approve", "wrong")
        failed = wait("the verdict", lambda: people.condition("wrong", "Failed"), 30)
        assert (failed["reason"], failed["message"]) == ("SignerValidationFailure", "DNS or IP subjectAltName is required")
        assert conditions_shown(cluster, "wrong") == "Approved,Failed"

        masters = people.request("root", "/O=system:masters/CN=root")
        spec = {"request": masters, "signerName": CLIENT, "usages": ["client auth"]}
        body = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "root"}, "spec": spec}
        refused = cluster.kubectl("create", "-f", "-", input=json.dumps(body), check=False, full=True)
        assert "system:masters group is not allowed" in refused.stderr, refused.stderr

        # What the API server shows is attested too.
        bundles = cluster.get("clustertrustbundles")["items"]
        mine = [b["spec"]["trustBundle"] for b in bundles if b["spec"]["signerName"] == "kubernetes.io/kube-apiserver-serving"]
        assert mine == [cluster.get("configmap", "kube-root-ca.crt")["data"]["ca.crt"]], bundles
    finally:
        cluster.close()
