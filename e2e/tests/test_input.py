"""Bad input gets a clear error that names the thing and the remedy; nothing is lost."""

import json
import os
import subprocess
import zlib

from harness import pod, run, wait


def curl(cluster, method, path, body=None, *headers):
    """A request with the administrator's certificate; answers (code, body)."""
    import base64
    import re

    with open(cluster.kubeconfig) as f:
        text = f.read()
    cert = os.path.join(cluster.dir, "admin.pem")
    with open(cert, "wb") as f:
        for field in ("client-certificate-data", "client-key-data"):
            f.write(base64.b64decode(re.search(field + r":\s*(\S+)", text)[1]) + b"\n")
    args = ["curl", "-sSk", "--cert", cert, "-X", method, "-w", "\n%{http_code}", f"https://127.0.0.1:6443{path}"]
    for h in headers:
        args += ["-H", h]
    if body is not None:
        args += ["--data-binary", "@-"]
    out = run(cluster.net.inside(args), input=body).stdout
    text, _, code = out.rpartition("\n")
    return int(code), json.loads(text)


JSON = "Content-Type: application/json"
YAML = "Content-Type: application/yaml"


def test_requests_answer_with_a_status(cluster):
    maps = "/api/v1/namespaces/default/configmaps"
    cases = [
        ("POST", maps, "{", [JSON], 400, "BadRequest", ""),
        ("POST", maps, '{"metadata":{"name":"Not_A_Name"}}', [JSON], 422, "Invalid", "metadata.name: Invalid value"),
        ("POST", maps, '{"kind":"Secret","apiVersion":"v1","metadata":{"name":"x"}}', [JSON], 400, "BadRequest", ""),
        ("POST", maps, '{"metadata":{"name":"x"},"data":{"a":1}}', [JSON], 400, "BadRequest", "cannot unmarshal number into Go struct field ConfigMap.data of type string"),
        ("POST", maps, "a: b", ["Content-Type: text/plain"], 415, "UnsupportedMediaType", ""),
        ("POST", maps, "metadata: {name: x}\ndata: [\n", [YAML], 400, "BadRequest", "the object provided is unrecognized (must be of type ConfigMap): yaml: "),
        ("POST", maps, "- a\n- b\n", [YAML], 400, "BadRequest", "the object provided is unrecognized (must be of type ConfigMap)"),
        ("POST", maps, "metadata: {name: x}\ndata: {a: [b]}\n", [YAML], 400, "BadRequest", "cannot unmarshal array into Go struct field ConfigMap.data of type string"),
        ("POST", maps, '{"metadata":{"name":"x","namespace":"other"}}', [JSON], 400, "BadRequest", "does not match the namespace"),
        ("POST", maps + "?fieldValidation=Strict", '{"metadata":{"name":"x"},"dat":{}}', [JSON], 400, "BadRequest", 'strict decoding error: unknown field "dat"'),
        ("POST", maps, json.dumps({"metadata": {"name": "x"}, "data": {"a": "y" * 4_000_000}}), [JSON], 413, "RequestEntityTooLarge", "limit is 3145728"),
        ("GET", maps + "/nothing", None, [], 404, "NotFound", 'configmaps "nothing" not found'),
        ("GET", "/apis/apps/v1/things", None, [], 404, "NotFound", "could not find the requested resource"),
        ("GET", maps + "?labelSelector=a%20b", None, [], 400, "BadRequest", "unable to parse requirement"),
        ("GET", maps + "?fieldSelector=spec.x%3D1", None, [], 400, "BadRequest", '"spec.x" is not a known field selector'),
        ("GET", maps + "?resourceVersion=abc", None, [], 400, "BadRequest", "" ),
        ("GET", maps + "?limit=1&continue=garbage", None, [], 400, "BadRequest", "continue"),
        ("GET", maps, None, ["Accept: text/html"], 406, "NotAcceptable", ""),
        ("PATCH", maps + "/kube-root-ca.crt", "{}", [JSON], 415, "UnsupportedMediaType", "415: Unsupported Media Type"),
        ("PUT", maps + "/other", '{"metadata":{"name":"x"}}', [JSON], 400, "BadRequest", "the name of the object (x) does not match the name on the URL (other)"),
        ("DELETE", "/api/v1/namespaces/kube-system", None, [], 403, "Forbidden", ""),
    ]
    for method, path, body, headers, code, reason, words in cases:
        got_code, got = curl(cluster, method, path, body, *headers)
        assert (got_code, got.get("reason")) == (code, reason) and words in got["message"], f"{method} {path}: {got_code} {got}"
        assert got["kind"] == "Status" and got["status"] == "Failure" and got["code"] == code, got


def test_yaml_is_taken(cluster):
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: from-yaml\ndata:\n  word: 'yes'\n"
    code, made = curl(cluster, "POST", "/api/v1/namespaces/default/configmaps", text, YAML)
    assert (code, made["data"]) == (201, {"word": "yes"}), made
    cluster.kubectl("delete", "configmap", "from-yaml")


def test_tokens_and_anonymous(cluster):
    ask = lambda *h: json.loads(run(cluster.net.inside(["curl", "-sSk", *sum((["-H", x] for x in h), []), "https://127.0.0.1:6443/api/v1/pods"])).stdout)  # noqa: E731
    assert ask()["code"] == 403 and 'User "system:anonymous" cannot list resource "pods"' in ask()["message"]
    assert ask("Authorization: Bearer nonsense")["code"] == 401
    token = cluster.kubectl("create", "token", "default", "--duration=600s").strip()
    head, claims, signature = token.split(".")
    assert ask(f"Authorization: Bearer {head}.{claims}.{signature[:-4]}AAAA")["code"] == 401
    # A good one of somebody who may do nothing.
    assert ask(f"Authorization: Bearer {token}")["code"] == 403


def test_invalid_objects_name_every_field(cluster):
    bad = pod("Bad", "", restartPolicy="Sometimes")
    done = cluster.kubectl("apply", "-f", "-", input=json.dumps(bad), check=False, full=True)
    for words in ("metadata.name: Invalid value", "spec.containers[0].image: Required value", 'spec.restartPolicy: Unsupported value: "Sometimes"'):
        assert words in done.stderr, done.stderr
    done = cluster.kubectl("apply", "-f", "-", input="a: [", check=False, full=True)
    assert done.returncode != 0
    typo = pod("typo", "x")
    typo["spec"]["containerz"] = []
    done = cluster.kubectl("apply", "-f", "-", input=json.dumps(typo), check=False, full=True)
    assert 'unknown field "spec.containerz"' in done.stderr, done.stderr


def server(cluster, *flags, env=None):
    """Runs a server that is expected to refuse; its message."""
    done = run(cluster.net.inside([cluster.isopod, "server", *flags]), check=False, timeout=30)
    assert done.returncode != 0, done
    return done.stderr


def test_the_program_refuses_clearly(cluster):
    assert "unexpected argument '--no-such-flag'" in server(cluster, "--no-such-flag")
    config = os.path.join(cluster.dir, "bad.yaml")
    with open(config, "w") as f:
        f.write("nodename: x\n")
    assert f'{config}: unknown key "nodename"' in server(cluster, "--config", config)
    with open(config, "w") as f:
        f.write("a: [\n")
    assert f"{config} is not valid YAML" in server(cluster, "--config", config)
    # Another server holds the data directory, and another one the port.
    here = ["--cgroup-root", f"{cluster.cgroup}-2", "--write-kubeconfig", f"{cluster.dir}/k2"]
    text = server(cluster, "--data-dir", cluster.data, *here, "--https-listen-port", "7443")
    assert cluster.data in text and "in use" in text, text
    text = server(cluster, "--data-dir", f"{cluster.dir}/other", *here, "--disable-agent")
    assert "6443" in text and "in use" in text, text
    text = server(cluster, "--data-dir", f"{cluster.dir}/other", *here, "--disable-agent", "--https-listen-port", "7443", "--cluster-cidr", "nonsense")
    assert "cluster-cidr" in text and "nonsense" in text, text


def test_a_data_directory_of_another_version(fresh):
    cluster = fresh(agent=False).start()
    try:
        cluster.stop()
        # As a newer program would have written it: the version stands in the first page, whose last four bytes are its checksum.
        with open(f"{cluster.data}/server/db/state.db", "r+b") as f:
            page = bytearray(f.read(4096))
            page[60:64] = (999).to_bytes(4, "big")
            page[-4:] = zlib.crc32((1).to_bytes(4, "little") + page[:-4]).to_bytes(4, "little")
            f.seek(0)
            f.write(page)
        text = server(cluster, "--data-dir", cluster.data, "--disable-agent", "--write-kubeconfig", cluster.kubeconfig)
        assert "version" in text and "999" in text, text
    finally:
        cluster.close()


def test_check_tells(cluster):
    done = run(cluster.net.inside([cluster.isopod, "check", "--https-listen-port", "7443", "--kubelet-port", "7444"]), check=False)
    assert done.returncode == 0, done
    for words in ("overlay file system: mounts", "bridge and veth: work", "nftables: has all", "pod and service tables: can be written", "cgroup", "7443"):
        assert words in done.stdout, done.stdout
    taken = run(cluster.net.inside([cluster.isopod, "check"]), check=False)
    assert taken.returncode != 0 and "6443" in taken.stdout and "in use" in taken.stdout, taken


def test_completion(cluster):
    for shell in ("bash", "zsh", "fish"):
        text = run([cluster.isopod, "completion", shell]).stdout
        assert "isopod" in text and "cleanup" in text, text
    done = subprocess.run([cluster.isopod, "--help"], capture_output=True, text=True)
    assert "isopod server" in done.stdout


def test_api_without_a_node(fresh):
    cluster = fresh(agent=False).start()
    try:
        cluster.apply(pod("waits", "x"), ns="default") if wait("sa", lambda: cluster.kubectl("get", "sa", "default")) else None
        assert cluster.get("pod", "waits")["status"]["phase"] == "Pending"
        assert cluster.get("nodes")["items"] == []
    finally:
        cluster.close()
