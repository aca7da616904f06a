"""Runs the application, and ends it at the first write, process or connection."""

import os
import sys
import time

import app.__main__

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = {"subprocess.Popen", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system",
             "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link",
             "os.symlink", "os.chmod", "os.utime", "socket.bind", "socket.connect"}  # fmt: skip


def guard(event, arguments):
    if event in FORBIDDEN or (event == "open" and arguments[2] & WRITES):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(99)


def main(arguments):
    """Says whether TensorFlow was imported and how long it took; leaves with the exit code."""
    sys.addaudithook(guard)
    code = app.__main__.main(arguments)
    print("tensorflow" in sys.modules, time.process_time())
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
