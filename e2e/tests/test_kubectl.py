"""Stock kubectl, the newest and one five minor versions older, asserting what a user would look at."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

from harness import NODE_IP, deployment, pod, run, wait

VERSIONS = ("1.37", "1.32")
# For apps whose end nobody looks at.
QUICK = [{"name": "DRAIN_SECONDS", "value": "0"}]


def each(test):
    """Runs the test with every kubectl, each in a namespace of its own."""

    def both(cluster):
        for version in VERSIONS:
            ns = f"{test.__name__.replace('_', '-')}-{version.replace('.', '-')}"
            with cluster.namespace(ns):

                def k(*args, **kw):
                    return cluster.kubectl(*args, version=version, ns=ns, **kw)

                test(cluster, k, ns, version)

    both.__name__ = test.__name__
    return both


def sleeper(cluster, name="sleeper", **spec):
    return pod(name, cluster.image("busybox:1.36"), ["sleep", "10000"], **spec)


def start(cluster, k, *objects):
    k("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
    for o in objects:
        if o["kind"] == "Pod":
            k("wait", "--for=condition=Ready", f"pod/{o['metadata']['name']}", "--timeout=60s", timeout=70)
        else:
            k("rollout", "status", f"deployment/{o['metadata']['name']}", "--timeout=60s", timeout=70)


@each
def test_server_side_apply(cluster, k, ns, version):
    def config(**data):
        return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": data})

    def apply(manager, *args, **data):
        return k("apply", "--server-side", f"--field-manager={manager}", *args, "-f", "-", input=config(**data), check=False, full=True)

    def stored():
        return json.loads(k("get", "configmap", "shared", "-o", "json", "--show-managed-fields"))

    def owners(key):
        entries = stored()["metadata"]["managedFields"]
        return sorted(e["manager"] for e in entries if f"f:{key}" in e["fieldsV1"].get("f:data", {}))

    first = apply("alpha", color="red", size="1")
    assert "configmap/shared serverside-applied" in first.stdout, first
    refused = apply("beta", color="blue")
    assert refused.returncode != 0, refused
    for text in ("Apply failed with 1 conflict: conflict with \"alpha\": .data.color", "--force-conflicts"):
        assert text in refused.stderr, refused.stderr
    assert apply("beta", "--force-conflicts", color="blue").returncode == 0
    assert (stored()["data"], owners("color"), owners("size")) == ({"color": "blue", "size": "1"}, ["beta"], ["alpha"])
    # What a manager no longer says is gone, unless another one says it.
    assert apply("alpha", shape="round").returncode == 0
    assert stored()["data"] == {"color": "blue", "shape": "round"}
    k("patch", "configmap", "shared", "-p", '{"data":{"note":"x"}}', "--field-manager=human")
    assert owners("note") == ["human"]
    diff = k("diff", "--server-side", "--field-manager=beta", "-f", "-", input=config(color="green"), check=False, full=True)
    assert diff.returncode == 1 and "+  color: green" in diff.stdout, diff
    assert stored()["data"]["color"] == "blue"
    # From client-side apply to server-side apply and back.
    client = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "moved"}, "data": {"a": "1"}}
    k("apply", "-f", "-", input=json.dumps(client))
    client["data"] = {"a": "2"}
    assert "serverside-applied" in k("apply", "--server-side", "-f", "-", input=json.dumps(client))
    client["data"] = {"a": "3"}
    assert "configured" in k("apply", "-f", "-", input=json.dumps(client))
    assert k("get", "configmap", "moved", "-o", "jsonpath={.data.a}") == "3"


@each
def test_get_in_all_forms(cluster, k, ns, version):
    start(cluster, k, sleeper(cluster))
    table = k("get", "pods").splitlines()
    assert re.split(r"\s{2,}", table[0]) == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"], table
    assert re.match(r"sleeper\s+1/1\s+Running\s+0\s+\d+s", table[1]), table
    wide = k("get", "pods", "-o", "wide")
    assert all(w in wide for w in ("IP", "NODE", "NOMINATED NODE", "READINESS GATES", "box")), wide
    assert json.loads(k("get", "pod", "sleeper", "-o", "json"))["status"]["phase"] == "Running"
    assert "phase: Running" in k("get", "pod", "sleeper", "-o", "yaml")
    assert k("get", "pod", "sleeper", "-o", "name").strip() == "pod/sleeper"
    assert k("get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}") == "box"
    assert k("get", "pods", "-o", "go-template={{len .items}}") == "1"
    custom = k("get", "pods", "-o", "custom-columns=N:.metadata.name,P:.status.phase").split()
    assert custom == ["N", "P", "sleeper", "Running"], custom
    assert json.loads(k("get", "pods", "-o", "jsonpath-as-json={.items[*].metadata.name}")) == ["sleeper"]
    for form, template, want in (
        ("jsonpath-file", "{.items[0].spec.nodeName}", "box"),
        ("go-template-file", "{{range .items}}{{.metadata.name}};{{end}}", "sleeper;"),
        ("templatefile", "{{(index .items 0).kind}}", "Pod"),
        ("custom-columns-file", "NAME PHASE\n.metadata.name .status.phase\n", "NAME      PHASE\nsleeper   Running\n"),
    ):
        path = os.path.join(cluster.dir, "template")
        with open(path, "w") as f:
            f.write(template)
        assert k("get", "pods", "-o", f"{form}={path}") == want, form
    if version == VERSIONS[0]:
        kyaml = k("get", "pod", "sleeper", "-o", "kyaml")
        assert kyaml.startswith("---\n{") and '  kind: "Pod",\n' in kyaml, kyaml
    assert "app=sleeper" in k("get", "pods", "--show-labels")
    assert "sleeper" in k("get", "pods", "-L", "app", "-l", "app in (sleeper)")
    assert k("get", "pods", "--field-selector=status.phase=Failed", "-o", "name") == ""
    assert "sleeper" in k("get", "pods", "-A", "--sort-by=.metadata.name")
    missing = k("get", "pod", "nothing", check=False, full=True)
    assert missing.returncode == 1 and 'pods "nothing" not found' in missing.stderr, missing
    assert "sleeper" in k("get", "pods", "--chunk-size=1")


class Watcher:
    """kubectl that goes on, and what it has said so far."""

    def __init__(self, cluster, args):
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, env=cluster.env())
        self.text = ""

    def until(self, pattern, timeout=30):
        """Reads until the pattern is there."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.text, re.M):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            got = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            assert got, f"{pattern!r} did not come after:\n{self.text}"
            self.text += got.decode()
        return self.text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


@each
def test_watch(cluster, k, ns, version):
    with Watcher(cluster, cluster.kubectl_args("get", "configmaps", "--watch", "-o", "name", version=version, ns=ns)) as names:
        # What is there already shows that kubectl has begun.
        names.until(r"^configmap/kube-root-ca.crt$")
        k("create", "configmap", "one", "--from-literal=a=b")
        k("label", "configmap", "one", "x=y")
        k("delete", "configmap", "one")
        names.until(r"(?s)(configmap/one\n.*){3}")
    # What a user looks at: a table that grows by a line a change.
    start(cluster, k, sleeper(cluster, "early"))
    with Watcher(cluster, cluster.kubectl_args("get", "pods", "-w", version=version, ns=ns)) as table:
        table.until(r"^early +1/1 +Running")
        k("apply", "-f", "-", input=json.dumps(sleeper(cluster, "late")))
        for state in ("0/1 +Pending", "1/1 +Running"):
            table.until(rf"^late +{state} +0 +\d+s$")
        k("delete", "pod", "late")
        lines = table.until(r"^late +[01]/1 +Terminating").splitlines()
        assert re.split(r"\s{2,}", lines[0]) == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"], lines
        assert sum(line.startswith("NAME") for line in lines) == 1, f"a watch has one head: {lines}"
        assert all(len(re.split(r"\s{2,}", line)) == 5 for line in lines), lines
    with Watcher(cluster, cluster.kubectl_args("get", "pods", "-w", "--output-watch-events", version=version, ns=ns)) as events:
        events.until(r"^EVENT +NAME +READY")
        events.until(r"^ADDED +early +1/1")
        k("delete", "pod", "early")
        events.until(r"^DELETED +early ")


@each
def test_describe_and_explain(cluster, k, ns, version):
    start(cluster, k, sleeper(cluster))
    text = k("describe", "pod", "sleeper")
    for words in ("Node:             box/", "Status:           Running", "Container ID:  isopod://", "Pulled", "Started"):
        assert words in text, f"{words!r} is not in\n{text}"
    node = k("describe", "node", "box")
    for words in ("Capacity:", "Allocatable:", "Ready", "Non-terminated Pods:", "Container Runtime Version:"):
        assert words in node, f"{words!r} is not in\n{node}"
    explained = k("explain", "pod.spec.containers.livenessProbe")
    assert "Periodic probe" in explained and "initialDelaySeconds" in explained, explained
    assert "FIELDS" in k("explain", "deployment.spec", "--recursive")
    start(cluster, k, deployment("web", cluster.image("app:v1"), 1, ports=[{"containerPort": 8080}], env=QUICK))
    web = k("describe", "deployment", "web")
    for words in ("1 desired | 1 updated | 1 total | 1 available", "StrategyType:           RollingUpdate", "Scaled up replica set web-"):
        assert words in web, f"{words!r} is not in\n{web}"
    k("expose", "deployment", "web", "--port=80", "--target-port=8080")
    ip = k("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}")
    wait("the endpoints", lambda: re.search(rf"^Endpoints: +{re.escape(ip)}:8080$", k("describe", "service", "web"), re.M))


@each
def test_apply_diff_edit_patch(cluster, k, ns, version):
    wanted = deployment("web", cluster.image("app:v1"), 1, ports=[{"containerPort": 8080, "name": "http"}])
    assert "created" in k("apply", "-f", "-", input=json.dumps(wanted))
    assert "unchanged" in k("apply", "-f", "-", input=json.dumps(wanted))
    wanted["spec"]["replicas"] = 2
    diff = k("diff", "-f", "-", input=json.dumps(wanted), check=False, full=True)
    assert diff.returncode == 1 and "+  replicas: 2" in diff.stdout, diff
    assert "configured" in k("apply", "-f", "-", input=json.dumps(wanted))
    assert k("diff", "-f", "-", input=json.dumps(wanted)) == ""
    k("patch", "deployment", "web", "-p", '{"spec":{"template":{"spec":{"containers":[{"name":"main","env":[{"name":"A","value":"1"}]}]}}}}')
    k("patch", "deployment", "web", "--type=json", "-p", '[{"op":"replace","path":"/spec/replicas","value":1}]')
    k("patch", "deployment", "web", "--type=merge", "-p", '{"metadata":{"annotations":{"note":"merged"}}}')
    got = json.loads(k("get", "deployment", "web", "-o", "json"))
    container = got["spec"]["template"]["spec"]["containers"][0]
    assert got["spec"]["replicas"] == 1 and got["metadata"]["annotations"]["note"] == "merged"
    assert container["env"] == [{"name": "A", "value": "1"}] and container["ports"][0]["containerPort"] == 8080
    editor = os.path.join(cluster.dir, "editor")
    with open(editor, "w") as f:
        f.write("#!/bin/sh\nsed -i 's/note: merged/note: edited/' $1\n")
    os.chmod(editor, 0o755)
    assert "edited" in k("edit", "deployment", "web", env={"KUBE_EDITOR": editor})
    assert k("get", "deployment", "web", "-o", "jsonpath={.metadata.annotations.note}") == "edited"
    bad = k("patch", "deployment", "web", "--type=json", "-p", '[{"op":"remove","path":"/spec/nothing"}]', check=False, full=True)
    assert bad.returncode != 0, bad
    assert k("apply", "view-last-applied", "deployment/web").startswith("apiVersion: apps/v1")
    # What is not in the new object is gone.
    assert k("replace", "-f", "-", input=json.dumps(wanted)) == "deployment.apps/web replaced\n"
    got = json.loads(k("get", "deployment", "web", "-o", "json"))
    assert got["spec"]["replicas"] == 2 and "note" not in got["metadata"].get("annotations", {}), got
    assert "env" not in got["spec"]["template"]["spec"]["containers"][0], got
    uid = got["metadata"]["uid"]
    k("replace", "--force", "-f", "-", input=json.dumps(wanted), timeout=90)
    assert k("get", "deployment", "web", "-o", "jsonpath={.metadata.uid}") != uid


@each
def test_create_label_annotate(cluster, k, ns, version):
    k("create", "configmap", "settings", "--from-literal=a=1", "--from-literal=b=2")
    k("create", "secret", "generic", "password", "--from-literal=p=s3cret")
    k("create", "serviceaccount", "robot")
    k("create", "role", "reader", "--verb=get,list", "--resource=pods")
    k("create", "rolebinding", "robot-reads", "--role=reader", f"--serviceaccount={ns}:robot")
    k("create", "deployment", "made", "--image", cluster.image("app:v1"), "--replicas=1")
    k("create", "job", "once", "--image", cluster.image("busybox:1.36"), "--dry-run=server", "-o", "yaml")
    assert k("get", "secret", "password", "-o", "jsonpath={.data.p}") == "czNjcmV0"
    assert k("label", "configmap", "settings", "tier=gold") == "configmap/settings labeled\n"
    assert k("annotate", "configmap", "settings", "why=because", "by=me") == "configmap/settings annotated\n"
    notes = lambda: json.loads(k("get", "configmap", "settings", "-o", "json"))["metadata"].get("annotations", {})  # noqa: E731
    assert notes() == {"why": "because", "by": "me"}, notes()
    k("annotate", "configmap", "settings", "why=changed", "by-", "--overwrite")
    assert notes() == {"why": "changed"}, notes()
    assert "why=changed" in k("annotate", "configmap", "settings", "--list")
    again = k("label", "configmap", "settings", "tier=silver", check=False, full=True)
    assert again.returncode != 0 and "--overwrite" in again.stderr, again
    k("label", "configmap", "settings", "tier=silver", "--overwrite")
    assert k("get", "configmaps", "-l", "tier=silver", "-o", "name").strip() == "configmap/settings"
    k("label", "configmap", "settings", "tier-")
    assert k("get", "configmaps", "-l", "tier", "-o", "name") == ""
    token = k("create", "token", "robot").strip()
    url = f"https://127.0.0.1:6443/api/v1/namespaces/{ns}"
    ask = lambda path: run(cluster.net.inside(["curl", "-sSk", "-H", f"Authorization: Bearer {token}", url + path])).stdout  # noqa: E731
    assert json.loads(ask("/pods"))["kind"] == "PodList"
    refused = json.loads(ask("/secrets"))
    assert refused["code"] == 403 and f'User "system:serviceaccount:{ns}:robot" cannot list resource "secrets"' in refused["message"], refused
    assert k("auth", "can-i", "list", "pods", f"--as=system:serviceaccount:{ns}:robot").strip() == "yes"
    no = k("auth", "can-i", "delete", "pods", f"--as=system:serviceaccount:{ns}:robot", check=False)
    assert no.strip() == "no"


@each
def test_scale_and_rollout(cluster, k, ns, version):
    start(cluster, k, deployment("web", cluster.image("app:v1"), 1, env=QUICK))
    k("scale", "deployment", "web", "--replicas=3")
    assert "successfully rolled out" in k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    assert k("get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}") == "3"
    k("set", "image", "deployment/web", f"main={cluster.image('app:v2')}")
    k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    history = k("rollout", "history", "deployment/web")
    assert re.search(r"^1 .*\n2 ", history, re.M), history
    assert "app:v1" in k("rollout", "history", "deployment/web", "--revision=1")
    k("rollout", "undo", "deployment/web")
    k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    image = "jsonpath={.spec.template.spec.containers[0].image}"
    assert k("get", "deployment", "web", "-o", image).endswith("app:v1")
    before = k("get", "pods", "-o", "name")
    k("rollout", "restart", "deployment/web")
    k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    wait("old pods gone", lambda: not set(before.split()) & set(k("get", "pods", "-o", "name").split()))
    assert k("rollout", "pause", "deployment/web") == "deployment.apps/web paused\n"
    sets = k("get", "replicasets", "-o", "name").split()
    k("set", "env", "deployment/web", "STEP=paused")
    seen = lambda: json.loads(k("get", "deployment", "web", "-o", "json"))  # noqa: E731
    wait("the controller has seen it", lambda: seen()["status"]["observedGeneration"] == seen()["metadata"]["generation"])
    wait("paused", lambda: any(c["reason"] == "DeploymentPaused" for c in seen()["status"]["conditions"]))
    assert seen()["spec"]["paused"] and k("get", "replicasets", "-o", "name").split() == sets, "a paused deployment rolled out"
    again = k("rollout", "pause", "deployment/web", check=False, full=True)
    assert again.returncode != 0 and "already paused" in again.stderr, again
    assert k("rollout", "resume", "deployment/web") == "deployment.apps/web resumed\n"
    k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    assert len(k("get", "replicasets", "-o", "name").split()) == len(sets) + 1
    steps = k("get", "pods", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].spec.containers[0].env[?(@.name==\"STEP\")].value}")
    assert set(steps.split()) == {"paused"}, steps


@each
def test_logs(cluster, k, ns, version):
    script = "echo first; echo oops >&2; while [ ! -e /tmp/go ]; do usleep 50000; done; echo last; sleep 1000"
    start(cluster, k, pod("talker", cluster.image("busybox:1.36"), ["sh", "-c", script]))
    wait("first lines", lambda: k("logs", "talker").splitlines() == ["first", "oops"])
    assert k("logs", "talker", "--tail=1").splitlines() == ["oops"]
    assert re.match(r"\d{4}-\d\d-\d\dT\S+ first", k("logs", "talker", "--timestamps"))
    args = cluster.kubectl_args("logs", "-f", "talker", version=version, ns=ns)
    follower = subprocess.Popen(args, stdout=subprocess.PIPE, text=True, env=cluster.env())
    try:
        assert follower.stdout.readline() == "first\n"
        k("exec", "talker", "--", "touch", "/tmp/go")
        lines = [follower.stdout.readline() for _ in range(2)]
        assert lines == ["oops\n", "last\n"], lines
    finally:
        follower.kill()
        follower.wait()
    assert "last" in k("logs", "-l", "app=talker")


@each
def test_exec(cluster, k, ns, version):
    start(cluster, k, sleeper(cluster))
    assert k("exec", "sleeper", "--", "hostname").strip() == "sleeper"
    failed = k("exec", "sleeper", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False, full=True)
    assert (failed.returncode, failed.stdout) == (7, "out\n") and "err" in failed.stderr, failed
    assert k("exec", "-i", "sleeper", "--", "cat", input="through\n" * 5000) == "through\n" * 5000
    gone = k("exec", "sleeper", "--", "/no/such/program", check=False, full=True)
    assert gone.returncode != 0 and "/no/such/program" in gone.stderr, gone
    args = cluster.kubectl_args("exec", "-it", "sleeper", "--", "sh", version=version, ns=ns)
    terminal(args, cluster.env(), [("tty\r", "/dev/pts/"), ("stty size\r", "40 100"), ("exit 3\r", None)], code=3)


def terminal(args, env, dialogue, code, greeting="# "):
    """Runs a command on a terminal of 40 lines by 100 columns; waits for its greeting, types and expects."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(args[0], args, env)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    os.kill(pid, signal.SIGWINCH)
    try:
        expect(fd, greeting)
        for typed, expected in dialogue:
            os.write(fd, typed.encode())
            if expected:
                expect(fd, expected)
    finally:
        end = time.monotonic() + 30
        status = None
        while status is None and time.monotonic() < end:
            done, raw = os.waitpid(pid, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(raw)
            elif select.select([fd], [], [], 0.05)[0]:
                try:
                    os.read(fd, 4096)
                except OSError:
                    pass
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(fd)
    assert status == code, f"ended with {status}, expected {code}"


def expect(fd, text):
    seen = b""
    end = time.monotonic() + 30
    while text.encode() not in seen:
        ready, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
        assert ready, f"expected {text!r}, saw {seen!r}"
        seen += os.read(fd, 4096)


@each
def test_attach(cluster, k, ns, version):
    stdin = {"stdin": True, "stdinOnce": True}
    start(cluster, k, pod("listener", cluster.image("busybox:1.36"), ["sh", "-c", "read a; echo got $a"], container=stdin, restartPolicy="Never"))
    assert "got hello" in k("attach", "-i", "listener", input="hello\n")
    k("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/listener", "--timeout=30s")
    start(cluster, k, pod("ticker", cluster.image("busybox:1.36"), ["sh", "-c", "while true; do echo tick; usleep 100000; done"]))
    with Watcher(cluster, cluster.kubectl_args("attach", "ticker", version=version, ns=ns)) as attached:
        attached.until(r"^tick\ntick$")
    console = {"stdin": True, "tty": True}
    start(cluster, k, pod("console", cluster.image("busybox:1.36"), ["sh"], container=console, restartPolicy="Never"))
    args = cluster.kubectl_args("attach", "-it", "console", version=version, ns=ns)
    dialogue = [("\r", "# "), ("tty\r", "/dev/pts/"), ("stty size\r", "40 100"), ("echo $((6*7))\r", "42"), ("exit 3\r", None)]
    terminal(args, cluster.env(), dialogue, code=0, greeting="try pressing enter")
    k("wait", "--for=jsonpath={.status.phase}=Failed", "pod/console", "--timeout=30s")
    assert k("get", "pod", "console", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}") == "3"


@each
def test_cp(cluster, k, ns, version):
    start(cluster, k, sleeper(cluster))
    source, back = os.path.join(cluster.dir, "up"), os.path.join(cluster.dir, "down")
    with open(source, "wb") as f:
        f.write(os.urandom(300_000))
    k("cp", source, "sleeper:/tmp/file")
    k("cp", "sleeper:/tmp/file", back)
    with open(source, "rb") as a, open(back, "rb") as b:
        assert a.read() == b.read()
    tree, copied = os.path.join(cluster.dir, f"tree-{ns}"), os.path.join(cluster.dir, f"copied-{ns}")
    os.makedirs(f"{tree}/inner/empty")
    wanted = {"a": b"one\n", "inner/b": os.urandom(70_000), "inner/script": b"#!/bin/sh\necho ran\n", "inner/nothing": b""}
    for name, data in wanted.items():
        with open(f"{tree}/{name}", "wb") as f:
            f.write(data)
    os.chmod(f"{tree}/inner/script", 0o755)
    k("cp", tree, "sleeper:/tmp/tree")
    assert k("exec", "sleeper", "--", "/tmp/tree/inner/script") == "ran\n"
    k("exec", "sleeper", "--", "test", "-d", "/tmp/tree/inner/empty")
    k("cp", "sleeper:/tmp/tree", copied)
    found = {}
    for top, _, files in os.walk(copied):
        for name in files:
            with open(f"{top}/{name}", "rb") as f:
                found[os.path.relpath(f"{top}/{name}", copied)] = f.read()
    assert found == wanted, found.keys()


@contextlib.contextmanager
def forwarding(cluster, ns, version, *args):
    """kubectl port-forward; the local port."""
    command = cluster.kubectl_args("port-forward", *args, version=version, ns=ns)
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=cluster.env())
    try:
        line = forward.stdout.readline()
        port = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert port, line
        yield port[1]
    finally:
        forward.kill()
        forward.wait()


@each
def test_port_forward(cluster, k, ns, version):
    start(cluster, k, deployment("web", cluster.image("app:v1"), 1, ports=[{"containerPort": 8080}], env=QUICK))
    with forwarding(cluster, ns, version, "deployment/web", ":8080") as port:
        for _ in range(20):
            body = run(cluster.net.inside(["curl", "-sS", "--max-time", "10", f"http://127.0.0.1:{port}/"])).stdout
            assert body.startswith("web-") and body.endswith(" v1\n"), body


@each
def test_port_forward_outlives_a_download_that_is_broken_off(cluster, k, ns, version):
    ready = {"readinessProbe": {"tcpSocket": {"port": 7000}}}
    start(cluster, k, pod("flood", cluster.image("busybox:1.36"), ["nc", "-ll", "-p", "7000", "-e", "yes"], container=ready))
    with forwarding(cluster, ns, version, "pod/flood", ":7000") as port:
        # What it leaves unread makes the kernel reset its connection.
        some = f"import socket; s = socket.create_connection(('127.0.0.1', {port}), 10); s.settimeout(20); print(s.recv(1))"
        for _ in range(5):
            assert run(cluster.net.inside([sys.executable, "-c", some])).stdout == "b'y'\n"


@each
def test_run_expose_wait(cluster, k, ns, version):
    k("run", "app", "--image", cluster.image("app:v1"), "--port=8080", "--labels=app=app", "--env=DRAIN_SECONDS=0")
    k("wait", "--for=condition=Ready", "pod/app", "--timeout=60s", timeout=70)
    k("expose", "pod", "app", "--port=80", "--target-port=8080", "--name=front")
    url = f"http://front.{ns}.svc.cluster.local/"
    # It waits for a line, so that it says nothing before kubectl listens.
    out = k("run", "asker", "--rm", "-i", "--restart=Never", "--quiet", "--image", cluster.image("busybox:1.36"), "--", "sh", "-c", f"read go; wget -qO- {url}", input="go\n")
    assert out.startswith("app v1"), out
    assert k("get", "pods", "-o", "name").strip() == "pod/app"
    k("delete", "pod", "app", "--wait=false")
    k("wait", "--for=delete", "pod/app", "--timeout=60s", timeout=70)
    start(cluster, k, deployment("web", cluster.image("app:v1"), 2, ports=[{"containerPort": 8080}], env=QUICK))
    exposed = k("expose", "deployment", "web", "--port=8000", "--target-port=8080", "--type=NodePort", "--name=door")
    assert exposed == "service/door exposed\n", exposed
    spec = json.loads(k("get", "service", "door", "-o", "json"))["spec"]
    assert spec["selector"] == {"app": "web"} and spec["ports"][0]["port"] == 8000, spec
    for port, ip in ((8000, spec["clusterIP"]), (spec["ports"][0]["nodePort"], NODE_IP)):
        wait("an answer", lambda: run(cluster.net.inside(["curl", "-sS", "--max-time", "5", f"http://{ip}:{port}/"])).stdout.startswith("web-"))  # noqa: B023


@each
def test_api_resources_and_versions(cluster, k, ns, version):
    resources = k("api-resources")
    for line in (r"^pods\s+po\s+v1\s+true\s+Pod$", r"^deployments\s+deploy\s+apps/v1\s+true\s+Deployment$", r"^ingresses\s+ing\s+networking.k8s.io/v1"):
        assert re.search(line, resources, re.M), resources
    assert "apps/v1\n" in k("api-versions")
    assert "Server Version: v1.37" in k("version")
    assert "is running at" in k("cluster-info")
    assert k("auth", "can-i", "--list").startswith("Resources")
    assert k("auth", "can-i", "create", "deployments").strip() == "yes"
    assert "system:masters" in k("auth", "whoami")


@each
def test_delete_in_all_cascade_modes(cluster, k, ns, version):
    for mode in ("background", "foreground", "orphan"):
        start(cluster, k, deployment(mode, cluster.image("app:v1"), 1, env=QUICK))
        k("delete", "deployment", mode, f"--cascade={mode}", timeout=90)
        sets = k("get", "replicasets", "-l", f"app={mode}", "-o", "name").split()
        if mode == "foreground":
            assert not sets and not k("get", "pods", "-l", f"app={mode}", "-o", "name"), "dependents outlived a foreground delete"
        if mode == "background":
            wait("dependents gone", lambda: not k("get", "replicasets,pods", "-l", f"app={mode}", "-o", "name"))
        if mode == "orphan":
            assert len(sets) == 1, sets
            refs = k("get", sets[0], "-o", "jsonpath={.metadata.ownerReferences}")
            assert refs == "", refs
            k("delete", sets[0])
    k("create", "configmap", "a")
    k("create", "configmap", "b")
    said = k("delete", "configmaps", "--all")
    assert 'configmap "a" deleted' in said and 'configmap "b" deleted' in said, said
    assert not {"configmap/a", "configmap/b"} & set(k("get", "configmaps", "-o", "name").split())
    start(cluster, k, sleeper(cluster, "one"), sleeper(cluster, "two"))
    k("delete", "pod", "--all", "--force", "--grace-period=0")
    assert k("get", "pods", "-o", "name") == ""


@each
def test_cordon_drain_taint(cluster, k, ns, version):
    start(cluster, k, deployment("web", cluster.image("app:v1"), 2, env=QUICK))
    k("cordon", "box")
    try:
        assert "SchedulingDisabled" in k("get", "node", "box")
        old = set(k("get", "pods", "-o", "name").split())
        drained = k("drain", "box", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s", timeout=70)
        assert all(f"{pod} evicted" in drained for pod in old) and "node/box drained" in drained, drained
        pods = wait("two pods pending", lambda: [p for p in cluster.get("pods", ns=ns)["items"] if p["status"]["phase"] == "Pending"])
        assert not old & {f"pod/{p['metadata']['name']}" for p in pods}
        wait("why", lambda: "1 node(s) were unschedulable" in k("get", "events"))
    finally:
        k("uncordon", "box")
    k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    assert "SchedulingDisabled" not in k("get", "node", "box")
    k("taint", "node", "box", "colour=blue:NoSchedule")
    try:
        k("delete", "pods", "--all")
        wait("untolerated taint", lambda: "untolerated taint" in k("get", "events"))
    finally:
        k("taint", "node", "box", "colour-")
    k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
