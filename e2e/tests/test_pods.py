"""What pods are promised: init containers, probes, hooks, volumes, environment, security, limits, exit codes."""

import base64
import contextlib
import json
import os
import re
import subprocess

from harness import CLIENT_IP, PRIVATE, deployment, pod, run, wait

# A name server outside of the cluster: it knows one name.
NAME_SERVER = r"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 53)); print("ready", flush=True)
while True:
    asked, who = s.recvfrom(2048)
    end = asked.index(b"\0", 12) + 1
    question, kind = asked[12:end + 4], asked[end:end + 2]
    known = asked[12:end].lower() == b"\x07outside\x04test\0"
    answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + bytes([203, 0, 113, 7]) if known and kind == b"\0\x01" else b""
    counts = b"\0\x01\0" + bytes([bool(answer)]) + b"\0\0\0\0"
    s.sendto(asked[:2] + (b"\x81\x80" if known else b"\x81\x83") + counts + question + answer, who)
"""


def phase(cluster, ns, name, want, timeout=60):
    cluster.kubectl("wait", f"--for=jsonpath={{.status.phase}}={want}", f"pod/{name}", f"--timeout={timeout}s", ns=ns, timeout=timeout + 10)
    return cluster.get("pod", name, ns=ns)


def shell(cluster, name, script, **spec):
    return pod(name, cluster.image("busybox:1.36"), ["sh", "-c", script], **spec)


def once(cluster, ns, name, script, **spec):
    """Runs a pod to its end and returns its log."""
    cluster.apply(shell(cluster, name, script, restartPolicy="Never", **spec), ns=ns)
    phase(cluster, ns, name, "Succeeded")
    return cluster.kubectl("logs", name, ns=ns)


def test_init_containers_run_in_order(cluster):
    with cluster.namespace("init") as ns:
        share = {"volumeMounts": [{"name": "share", "mountPath": "/share"}]}
        image = cluster.image("busybox:1.36")
        inits = [{"name": f"i{n}", "image": image, "command": ["sh", "-c", f"echo {n} >> /share/order"], **share} for n in (1, 2)]
        log = once(cluster, ns, "main", "cat /share/order; echo main", container=share, initContainers=inits, volumes=[{"name": "share", "emptyDir": {}}])
        assert log.split() == ["1", "2", "main"], log
        fails = [{"name": "bad", "image": image, "command": ["false"]}]
        cluster.apply(shell(cluster, "never", "echo no", restartPolicy="Never", initContainers=fails), ns=ns)
        got = phase(cluster, ns, "never", "Failed")
        assert got["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 1


def test_restart_policies_and_exit_codes(cluster):
    with cluster.namespace("restart") as ns:
        cluster.apply(shell(cluster, "fails", "echo why > /dev/termination-log; exit 3", restartPolicy="Never"), ns=ns)
        ended = phase(cluster, ns, "fails", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
        assert (ended["exitCode"], ended["reason"], ended["message"].strip()) == (3, "Error", "why"), ended
        # Without a message of its own: the end of the log, but of a failure only.
        fallback = {"terminationMessagePolicy": "FallbackToLogsOnError"}
        for name, script, want in (("speaks", "echo first; echo last words; exit 4", "first\nlast words\n"), ("fine", "echo all is well", None)):
            cluster.apply(shell(cluster, name, script, restartPolicy="Never", container=fallback), ns=ns)
            ended = phase(cluster, ns, name, "Failed" if want else "Succeeded")["status"]["containerStatuses"][0]["state"]["terminated"]
            assert ended.get("message") == want, ended
        cluster.apply(shell(cluster, "again", "exit 1"), ns=ns)
        state = lambda: cluster.get("pod", "again", ns=ns)["status"]["containerStatuses"][0]  # noqa: E731
        wait("CrashLoopBackOff", lambda: state()["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff")
        assert state()["restartCount"] >= 1 and state()["lastState"]["terminated"]["exitCode"] == 1
        cluster.apply(pod("no-image", cluster.image("nothing:1")), ns=ns)
        waiting = lambda: cluster.get("pod", "no-image", ns=ns)["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]  # noqa: E731
        wait("image errors", lambda: waiting() in ("ErrImagePull", "ImagePullBackOff"))
        cluster.apply(pod("no-program", cluster.image("busybox:1.36"), ["/no/such"], restartPolicy="Never"), ns=ns)
        failed = phase(cluster, ns, "no-program", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
        assert failed["exitCode"] in (127, 128) and "/no/such" in failed.get("message", ""), failed


def test_probes(cluster):
    with cluster.namespace("probes") as ns:
        probe = {"exec": {"command": ["test", "-e", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1}
        cluster.apply(shell(cluster, "ready", "sleep 1000", container={"readinessProbe": probe}), ns=ns)
        phase(cluster, ns, "ready", "Running")
        assert cluster.get("pod", "ready", ns=ns)["status"]["containerStatuses"][0]["ready"] is False
        cluster.kubectl("exec", "ready", "--", "touch", "/tmp/ok", ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/ready", "--timeout=30s", ns=ns, timeout=40)
        cluster.kubectl("exec", "ready", "--", "rm", "/tmp/ok", ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready=false", "pod/ready", "--timeout=30s", ns=ns, timeout=40)
        live = {"httpGet": {"path": "/nothing", "port": 8080}, "periodSeconds": 1, "failureThreshold": 2}
        quick = [{"name": "DRAIN_SECONDS", "value": "0"}]
        cluster.apply(pod("sick", cluster.image("app:v1"), container={"livenessProbe": live, "env": quick}), ns=ns)
        restarts = lambda: cluster.get("pod", "sick", ns=ns)["status"]["containerStatuses"][0]["restartCount"]  # noqa: E731
        wait("liveness restarts it", lambda: restarts() >= 1)
        assert "Liveness probe failed: HTTP probe failed with statuscode: 404" in cluster.kubectl("describe", "pod", "sick", ns=ns)
        starts = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
        # The test program speaks gRPC on the same port; a service that it does not know is not healthy.
        for name, service, ready in (("known", "", True), ("unknown", "nothing", False)):
            grpc = {"grpc": {"port": 8080, "service": service}, "periodSeconds": 1}
            cluster.apply(pod(name, cluster.image("app:v1"), container={"readinessProbe": grpc, "env": quick}), ns=ns)
            if ready:
                cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=30s", ns=ns, timeout=40)
        why = 'service unhealthy (responded with "SERVICE_UNKNOWN")'
        wait("the probe's event", lambda: f"Readiness probe failed: {why}" in cluster.kubectl("describe", "pod", "unknown", ns=ns))
        assert cluster.get("pod", "unknown", ns=ns)["status"]["containerStatuses"][0]["ready"] is False
        cluster.apply(pod("starts", cluster.image("app:v1"), container={"startupProbe": starts, "env": quick}), ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/starts", "--timeout=30s", ns=ns, timeout=40)


def test_hooks_and_grace(cluster):
    with cluster.namespace("hooks") as ns:
        hooks = {
            "postStart": {"exec": {"command": ["sh", "-c", "echo started > /share/post"]}},
            "preStop": {"exec": {"command": ["sh", "-c", "echo stopping > /share/pre"]}},
        }
        share = {"volumeMounts": [{"name": "share", "mountPath": "/share"}]}
        volumes = [{"name": "share", "hostPath": {"path": f"{cluster.dir}/hooks", "type": "DirectoryOrCreate"}}]
        script = "trap 'echo term > /share/term; exit 0' TERM; while true; do sleep 0.1; done"
        cluster.apply(shell(cluster, "polite", script, container={"lifecycle": hooks, **share}, volumes=volumes, terminationGracePeriodSeconds=20), ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/polite", "--timeout=30s", ns=ns, timeout=40)
        cluster.kubectl("delete", "pod", "polite", ns=ns)
        for name, text in (("post", "started"), ("pre", "stopping"), ("term", "term")):
            with open(f"{cluster.dir}/hooks/{name}") as f:
                assert f.read().strip() == text


def test_volumes_and_their_updates(cluster):
    with cluster.namespace("volumes") as ns:
        k = lambda *a, **kw: cluster.kubectl(*a, ns=ns, **kw)  # noqa: E731
        k("create", "configmap", "settings", "--from-literal=key=one")
        k("create", "secret", "generic", "hidden", "--from-literal=word=s3cret")
        mounts = [{"name": n, "mountPath": f"/{n}"} for n in ("settings", "hidden", "about", "all", "scratch")]
        volumes = [
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "hidden", "secret": {"secretName": "hidden", "defaultMode": 0o400}},
            {"name": "about", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "all", "projected": {"sources": [{"configMap": {"name": "settings", "items": [{"key": "key", "path": "a/b"}]}}, {"serviceAccountToken": {"path": "token", "audience": "me"}}]}},
            {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ]
        cluster.apply(shell(cluster, "reader", "sleep 1000", container={"volumeMounts": mounts}, volumes=volumes), ns=ns)
        k("wait", "--for=condition=Ready", "pod/reader", "--timeout=30s", timeout=40)
        cat = lambda path: k("exec", "reader", "--", "cat", path).strip()  # noqa: E731
        assert (cat("/settings/key"), cat("/hidden/word"), cat("/all/a/b")) == ("one", "s3cret", "one")
        assert 'app="reader"' in cat("/about/labels") and cat("/all/token").count(".") == 2
        assert "tmpfs" in k("exec", "reader", "--", "sh", "-c", "grep ' /scratch ' /proc/mounts")
        assert k("exec", "reader", "--", "stat", "-L", "-c", "%a", "/hidden/word").strip() == "400"
        k("patch", "configmap", "settings", "-p", '{"data":{"key":"two"}}')
        k("label", "pod", "reader", "new=yes")
        wait("the volume follows", lambda: cat("/settings/key") == "two" and cat("/all/a/b") == "two" and 'new="yes"' in cat("/about/labels"), 90)
        claims = lambda token: json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))  # noqa: E731
        mine = claims(cat("/all/token"))
        assert mine["aud"] == ["me"] and mine["kubernetes.io"]["pod"]["name"] == "reader", mine
        token = cat("/var/run/secrets/kubernetes.io/serviceaccount/token")
        assert token.count(".") == 2 and cat("/var/run/secrets/kubernetes.io/serviceaccount/namespace") == ns
        assert "BEGIN CERTIFICATE" in cat("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
        # Tokens are the pod's: what it may do with one it may do as long as it lives.
        who = ["-X", "POST", "-H", "Content-Type: application/json", "-d", "{}", "https://127.0.0.1:6443/apis/authentication.k8s.io/v1/selfsubjectreviews"]
        ask = lambda t: json.loads(run(cluster.net.inside(["curl", "-sSk", "-H", f"Authorization: Bearer {t}", *who])).stdout)  # noqa: E731
        user = ask(token)["status"]["userInfo"]
        assert user["username"] == f"system:serviceaccount:{ns}:default" and user["extra"]["authentication.kubernetes.io/pod-name"] == ["reader"], user
        assert ask(cat("/all/token"))["code"] == 401, "a token for others is no token for the API server"
        k("delete", "pod", "reader")
        wait("the token is void", lambda: ask(token).get("code") == 401)


def test_sub_paths(cluster):
    with cluster.namespace("subpath") as ns:
        cluster.kubectl("create", "configmap", "settings", "--from-literal=one=1", "--from-literal=two=2", ns=ns)
        mounts = [
            {"name": "settings", "mountPath": "/etc/one.conf", "subPath": "one", "readOnly": True},
            {"name": "share", "mountPath": "/inner", "subPath": "made/deep"},
            {"name": "share", "mountPath": "/own", "subPathExpr": "$(NAME)"},
            {"name": "share", "mountPath": "/all"},
        ]
        env = [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
        volumes = [{"name": "settings", "configMap": {"name": "settings"}}, {"name": "share", "emptyDir": {}}]
        script = "cat /etc/one.conf; ls /etc/passwd; echo x > /etc/one.conf; echo deep > /inner/f; echo own > /own/f; cd /all; grep . made/deep/f parts/f"
        log = once(cluster, ns, "parts", script, container={"volumeMounts": mounts, "env": env}, volumes=volumes)
        assert log.startswith("1") and "/etc/passwd" in log, log
        assert "Read-only file system" in log and "made/deep/f:deep\nparts/f:own\n" in log, log
        # A link in the volume leads nowhere outside of it.
        link = {"name": "link", "image": cluster.image("busybox:1.36"), "command": ["ln", "-s", "/etc", "/all/out"], "volumeMounts": mounts[3:]}
        escape = {"volumeMounts": [{"name": "share", "mountPath": "/host", "subPath": "out"}]}
        cluster.apply(shell(cluster, "escapes", "cat /host/hostname", container=escape, initContainers=[link], volumes=volumes[1:]), ns=ns)
        waiting = lambda: cluster.get("pod", "escapes", ns=ns)["status"]["containerStatuses"][0]["state"]["waiting"]  # noqa: E731
        wait("refused", lambda: waiting()["reason"] == "CreateContainerConfigError" and "subPath" in waiting()["message"])


def test_name_servers(cluster):
    server = subprocess.Popen(cluster.net.outside(["python3", "-c", NAME_SERVER, CLIENT_IP]), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "ready\n"
        with cluster.namespace("names") as ns:
            own = {"nameservers": [CLIENT_IP], "searches": ["corp.test"], "options": [{"name": "ndots", "value": "3"}, {"name": "edns0"}]}
            dns = cluster.get("service", "kube-dns", ns="kube-system")["spec"]["clusterIP"]
            suffix = f"search {ns}.svc.cluster.local svc.cluster.local cluster.local"
            for name, spec, want in (
                ("first", {}, {f"nameserver {dns}", suffix, "options ndots:5"}),
                ("more", {"dnsConfig": {"searches": ["corp.test"], "options": [{"name": "ndots", "value": "2"}]}}, {f"nameserver {dns}", f"{suffix} corp.test", "options ndots:2"}),
                ("host", {"dnsPolicy": "Default"}, {f"nameserver {CLIENT_IP}"}),
                ("none", {"dnsPolicy": "None", "dnsConfig": own}, {f"nameserver {CLIENT_IP}", "search corp.test", "options ndots:3 edns0"}),
            ):
                # All of them come to know a name of the outside: through the cluster's server, or at once.
                log = once(cluster, ns, name, "cat /etc/resolv.conf; nslookup -type=a outside.test.", **spec)
                conf, _, answer = log.partition("Server:")
                assert {line for line in conf.splitlines() if line} == want, log
                assert "203.0.113.7" in answer, log
            lost = shell(cluster, "lost", "nslookup -type=a nothing.test.", restartPolicy="Never")
            cluster.apply(lost, ns=ns)
            phase(cluster, ns, "lost", "Failed")
            assert "NXDOMAIN" in cluster.kubectl("logs", "lost", ns=ns)
    finally:
        server.kill()
        server.wait()


def test_environment_and_names(cluster):
    with cluster.namespace("env") as ns:
        cluster.kubectl("create", "configmap", "settings", "--from-literal=FROM=map", ns=ns)
        env = [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)2$$(A)"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        ]
        extra = {"env": env, "envFrom": [{"configMapRef": {"name": "settings"}}], "resources": {"limits": {"cpu": "2"}}}
        log = once(cluster, ns, "speak", "echo $A $B $IP $CPU $FROM $KUBERNETES_SERVICE_HOST; hostname -f; cat /etc/hosts", container=extra, hostname="me", subdomain="sub", hostAliases=[{"ip": "192.0.2.77", "hostnames": ["other"]}])
        words = log.split()
        ip = cluster.get("pod", "speak", ns=ns)["status"]["podIP"]
        assert words[:2] == ["1", "12$(A)"] and words[2] == ip and words[3:5] == ["2", "map"], log
        assert words[5] == cluster.get("service", "kubernetes", ns="default")["spec"]["clusterIP"], log
        assert f"me.sub.{ns}.svc.cluster.local" in log and "192.0.2.77\tother" in log, log


def test_pull_policies(cluster):
    with cluster.namespace("policies") as ns:
        image = cluster.image("moving:1")
        never = {"imagePullPolicy": "Never"}
        cluster.apply(shell(cluster, "absent", "true", container={**never, "image": image}), ns=ns)
        waiting = lambda name: cluster.get("pod", name, ns=ns)["status"]["containerStatuses"][0]["state"]["waiting"]  # noqa: E731
        wait("not pulled", lambda: waiting("absent")["reason"] == "ErrImageNeverPull" and image in waiting("absent")["message"])
        # The tag is given to another image while the node has the first one.
        for n, (pushed, policy, want) in enumerate((("app:v1", "IfNotPresent", "v1"), ("app:v2", "IfNotPresent", "v1"), ("app:v2", "Never", "v1"), ("app:v2", "Always", "v2"))):
            cluster.push(pushed, "moving:1")
            log = once(cluster, ns, f"p{n}", "echo $VERSION", container={"image": image, "imagePullPolicy": policy})
            assert log == f"{want}\n", (policy, log)
        # What ":latest", or no tag, means by itself.
        for name, asked, policy in (("tagged", "busybox:1.36", "IfNotPresent"), ("latest", "busybox:latest", "Always"), ("bare", "busybox", "Always")):
            made = cluster.kubectl("create", "-f", "-", "--dry-run=server", "-o", "json", input=json.dumps(pod(name, cluster.image(asked))), ns=ns)
            assert json.loads(made)["spec"]["containers"][0]["imagePullPolicy"] == policy, made
        cluster.kubectl("delete", "pod", "absent", ns=ns)


@contextlib.contextmanager
def private_registry(cluster):
    """The same images behind TLS and a password, at `PRIVATE`."""
    at = lambda name: os.path.join(cluster.dir, name)  # noqa: E731
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    run([*new, "-subj", "/CN=test CA", "-keyout", at("ca.key"), "-out", cluster.private_ca])
    leaf = ["-CA", cluster.private_ca, "-CAkey", at("ca.key"), "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"]
    run([*new, *leaf, "-subj", "/CN=registry", "-keyout", at("leaf.key"), "-out", at("leaf.pem")])
    with open(at("htpasswd"), "w") as f:
        # bcrypt of "let-me-in".
        f.write("puller:$2a$05$abcdefghijklmnopqrstuu3Jd./u/rH1RxB6auX5v7gLP6uWhKCgG\n")
    config = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": at("registry")}},
        "http": {"addr": PRIVATE, "tls": {"certificate": at("leaf.pem"), "key": at("leaf.key")}},
        "auth": {"htpasswd": {"realm": "private", "path": at("htpasswd")}},
    }
    with open(at("private.yml"), "w") as f:
        json.dump(config, f)
    with open(at("private.log"), "wb") as log:
        server = subprocess.Popen(cluster.net.inside(["docker-registry", "serve", at("private.yml")]), stdout=log, stderr=log)
    try:
        wait("the registry", lambda: run(cluster.net.inside(["curl", "-sSk", f"https://{PRIVATE}/v2/"])))
        yield
    finally:
        server.kill()
        server.wait()


def test_pull_secrets(cluster):
    with cluster.namespace("secrets") as ns, private_registry(cluster):
        image = f"{PRIVATE}/busybox:1.36"
        secret = lambda name, password: cluster.kubectl("create", "secret", "docker-registry", name, f"--docker-server={PRIVATE}", "--docker-username=puller", f"--docker-password={password}", ns=ns)  # noqa: E731
        secret("right", "let-me-in")
        secret("wrong", "nonsense")
        waiting = lambda name: cluster.get("pod", name, ns=ns)["status"]["containerStatuses"][0]["state"]["waiting"]  # noqa: E731
        for name, spec in (("nobody", {}), ("stranger", {"imagePullSecrets": [{"name": "wrong"}]})):
            cluster.apply(pod(name, image, ["sleep", "1000"], **spec), ns=ns)
            wait("refused", lambda: waiting(name)["reason"] in ("ErrImagePull", "ImagePullBackOff"))  # noqa: B023
            events = lambda: cluster.kubectl("describe", "pod", name, ns=ns)  # noqa: E731,B023
            wait("the registry's word", lambda: re.search("Failed to pull image.*(401|[Uu]nauthorized|[Nn]ot authorized)", events()))
        # By the pod's own secret, and by its service account's.
        cluster.apply(pod("mine", image, ["sleep", "1000"], imagePullSecrets=[{"name": "wrong"}, {"name": "right"}]), ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/mine", "--timeout=60s", ns=ns, timeout=70)
        cluster.kubectl("patch", "serviceaccount", "default", "-p", '{"imagePullSecrets":[{"name":"right"}]}', ns=ns)
        wait("admission", lambda: cluster.kubectl("create", "-f", "-", "--dry-run=server", "-o", "jsonpath={.spec.imagePullSecrets[0].name}", input=json.dumps(pod("x", image)), ns=ns) == "right")
        always = {"imagePullPolicy": "Always"}
        cluster.apply(pod("accounts", image, ["sleep", "1000"], container=always), ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/accounts", "--timeout=60s", ns=ns, timeout=70)


def test_security_context(cluster):
    with cluster.namespace("security") as ns:
        strict = {"runAsUser": 1000, "runAsGroup": 3000, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        log = once(cluster, ns, "strict", "id; touch /x 2>&1; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status", container={"securityContext": strict}, securityContext={"supplementalGroups": [4000], "fsGroup": 5000})
        assert "uid=1000(app) gid=3000 groups=" in log and "4000" in log and "5000" in log, log
        assert "Read-only file system" in log and "CapEff:\t0000000000000000" in log and "NoNewPrivs:\t1" in log, log
        log = once(cluster, ns, "plain", "id -u; grep -E 'CapEff|Seccomp:' /proc/self/status")
        assert log.startswith("0\n") and "CapEff:\t00000000a80425fb" in log and "Seccomp:\t2" in log, log
        cluster.apply(pod("nobody", cluster.image("app:v1"), container={"securityContext": {"runAsNonRoot": True, "runAsUser": 0}}), ns=ns)
        waiting = lambda: cluster.get("pod", "nobody", ns=ns)["status"]["containerStatuses"][0]["state"]["waiting"]  # noqa: E731
        wait("refused", lambda: waiting()["reason"] == "CreateContainerConfigError" and "runAsUser breaks non-root policy" in waiting()["message"])
        # A whiteout in the image's upper layer hides the file of the layer below.
        layers = pod("layers", cluster.image("app:v1"), ["sh", "-c", "ls /etc/removed /etc/from-below"], restartPolicy="Never")
        cluster.apply(layers, ns=ns)
        phase(cluster, ns, "layers", "Failed")
        listed = cluster.kubectl("logs", "layers", ns=ns)
        assert "/etc/from-below\n" in listed and "/etc/removed: No such file" in listed, listed
        host = once(cluster, ns, "host", "hostname; ip -o addr show eth0", hostNetwork=True)
        assert "192.0.2.2" in host, host


def test_limits_and_out_of_memory(cluster):
    with cluster.namespace("limits") as ns:
        limits = {"resources": {"limits": {"memory": "32Mi", "cpu": "250m"}, "requests": {"cpu": "100m", "memory": "16Mi"}}}
        cluster.apply(shell(cluster, "eater", "x=a; while true; do x=$x$x; done", restartPolicy="Never", container=limits), ns=ns)
        ended = phase(cluster, ns, "eater", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
        assert ended["reason"] == "OOMKilled" and ended["exitCode"] == 137, ended
        cluster.apply(shell(cluster, "modest", "sleep 1000", container=limits), ns=ns)
        got = phase(cluster, ns, "modest", "Running")
        assert got["status"]["qosClass"] == "Burstable"
        found = run(["find", "/sys/fs/cgroup", "-path", f"*{cluster.cgroup}*{got['metadata']['uid'].replace('-', '*')}*", "-name", "cpu.cfs_quota_us"]).stdout.split()
        quotas = {open(f).read().strip() for f in found}
        if found:  # cgroup v1
            assert "25000" in quotas, (found, quotas)


def test_unschedulable_pods_say_why(cluster):
    with cluster.namespace("big") as ns:
        cluster.apply(pod("big", cluster.image("app:v1"), container={"resources": {"requests": {"cpu": "500"}}}), ns=ns)
        wait("why", lambda: "0/1 nodes are available: 1 Insufficient cpu." in cluster.kubectl("describe", "pod", "big", ns=ns))
        cluster.apply(pod("picky", cluster.image("app:v1"), nodeSelector={"disk": "fast"}), ns=ns)
        wait("why", lambda: "didn't match Pod's node affinity/selector" in cluster.kubectl("describe", "pod", "picky", ns=ns))
        cluster.kubectl("label", "node", "box", "disk=fast")
        cluster.kubectl("wait", "--for=condition=Ready", "pod/picky", "--timeout=60s", ns=ns, timeout=70)
        cluster.kubectl("label", "node", "box", "disk-")


def test_image_commands(cluster):
    import images

    archive = f"{cluster.dir}/archive.tar"
    images.build(cluster.app)["busybox:1.36"].archive(archive, "example.test/imported:1")
    image = lambda *a: run(cluster.net.inside([cluster.isopod, "image", "--data-dir", cluster.data, "--private-registry", f"{cluster.dir}/registries.yaml", *a])).stdout  # noqa: E731
    image("import", archive)
    assert "example.test/imported" in image("ls")
    with cluster.namespace("imported") as ns:
        cluster.apply(pod("local", "example.test/imported:1", ["sleep", "1000"], container={"imagePullPolicy": "Never"}), ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/local", "--timeout=30s", ns=ns, timeout=40)
    image("pull", cluster.image("app:v2"))
    image("rm", "example.test/imported:1")
    assert "example.test/imported" not in image("ls")


def test_objects_of_every_kind_are_served(cluster):
    """Every listable resource answers a list, as a table and as JSON."""
    names = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    assert len(names) > 50, names
    for name in names:
        assert json.loads(cluster.kubectl("get", name, "-A", "-o", "json"))["kind"] == "List", name
    with cluster.namespace("quiet") as ns:
        cluster.apply(deployment("web", cluster.image("app:v1"), 0), ns=ns)
        web = lambda: cluster.get("deployment", "web", ns=ns)  # noqa: E731
        wait("observed", lambda: web()["status"].get("observedGeneration") == web()["metadata"]["generation"])
