"""Runs `horovodrun` more safely: the launcher of Horovod 0.28.1 with three changes.

* Its servers listen only on loopback when no other machine takes part; Horovod's listen on every
  interface, whatever `--network-interface` says (CVE-2024-10190, CVE-2026-31234).
* Ranks inherit the environment; it is not written on command lines, where `ps` shows it. Other
  machines get the variables that `is_exported` admits, and none that looks like a secret.
* It does not import TensorFlow to see whether Gloo was built: set-up has checked that.

    python -m app.launch.horovodrun <arguments of horovodrun>
"""

import os
import re
import sys

from horovod.runner import launch
from horovod.runner.common.util import config_parser
from horovod.runner.common.util import env as environment
from horovod.runner.common.util import network as services
from horovod.runner.http import http_server
from horovod.runner.util import network

from app.launch import private_network, processes

LOOPBACK = "SCALEPROOF_LOOPBACK"  # set: no other machine takes part
NEEDED = re.compile(r"(HOROVOD|NCCL|TF|XLA|KERAS|CUDA|OMP|GLIBC|SCALEPROOF|PYTHON)_?[A-Z0-9_]*$")
SEARCHED = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE", re.IGNORECASE)


def is_exported(name: str) -> bool:
    """Returns whether an environment variable goes on the command line of another machine."""
    return bool(NEEDED.match(name) or name in SEARCHED) and not SECRET.search(name)


def listen_on_loopback() -> None:
    """Makes Horovod's servers, in this process, listen only on loopback."""
    find_port = network.find_port

    def on_loopback(make_server):  # type: ignore[no-untyped-def]
        return find_port(lambda address: make_server(("127.0.0.1", address[1])))

    for module in (network, http_server, services):
        module.find_port = on_loopback


def main(arguments: list[str]) -> int:
    """Runs the job; returns 1 if one of its processes failed (the ranks print why)."""
    processes.die_with_parent()
    private_network.enter()
    is_local = bool(os.environ.get(LOOPBACK))
    if is_local:
        listen_on_loopback()
    environment.is_exportable = (lambda name: False) if is_local else is_exported
    # Ranks inherit what flags of horovodrun set, like the rest of the environment.
    set_env = config_parser.set_env_from_args

    def set_both(env, args):  # type: ignore[no-untyped-def]
        set_env(env, args)
        set_env(os.environ, args)
        return env

    config_parser.set_env_from_args = set_both
    launch.gloo_built = lambda verbose=False: True
    os.environ["PYTHONUNBUFFERED"] = "1"
    sys.argv = ["horovodrun", *arguments]
    try:
        launch.run_commandline()
    except RuntimeError as error:
        if "exited with non-zero" not in str(error):
            print(f"horovodrun: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
