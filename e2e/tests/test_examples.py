"""What a newcomer copies: the examples and the systemd unit."""

import os
import shutil

from harness import run, wait

MANIFESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "manifests")


def test_examples_and_the_unit_are_valid(fresh):
    cluster = fresh(agent=False).start()
    try:
        wait("default service account", lambda: cluster.kubectl("get", "sa", "default"))
        examples = sorted(os.listdir(f"{MANIFESTS}/examples"))
        assert examples, "there are no examples"
        for name in examples:
            path = f"{MANIFESTS}/examples/{name}"
            with open(path) as f:
                objects = sum(line.startswith("kind:") for line in f)
            # Strict: a field that does not exist, or stands twice, is an error. First in earnest, since later objects of a
            # file need the earlier ones.
            for flags, word in (([], "created\n"), (["--dry-run=server"], "(server dry run)\n")):
                done = cluster.kubectl("apply", "--validate=strict", *flags, "-f", path, full=True)
                assert done.stdout.count(word) == objects and "Warning" not in done.stderr, (name, done)
        if shutil.which("systemd-analyze"):
            verify_unit(cluster)
    finally:
        cluster.close()


def verify_unit(cluster):
    """Where the unit expects the program there is none on a machine that only tests."""
    with open(f"{MANIFESTS}/isopod.service") as f:
        text = f.read()
    assert "ExecStart=/usr/local/bin/isopod server\n" in text, text
    with open(f"{cluster.dir}/isopod.service", "w") as f:
        f.write(text.replace("/usr/local/bin/isopod", os.path.abspath(cluster.isopod)))
    done = run(["systemd-analyze", "verify", "--recursive-errors=no", f"{cluster.dir}/isopod.service"], check=False)
    assert done.returncode == 0 and not done.stderr.strip(), done
