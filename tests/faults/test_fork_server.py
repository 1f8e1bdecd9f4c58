"""The process from which tasks are forked ends when it is told to."""

import os
import time

import pytest

from tests.exactness.runner import Runner
from tests.faults.fork_server import ForkServer


@pytest.mark.parametrize("kind", ["faults", "exactness"])
def test_ends_while_a_forked_process_holds_its_pipe_open(kind, tmp_path):
    server = ForkServer() if kind == "faults" else Runner(tmp_path)
    holder = os.fork()
    if holder == 0:  # as data workers do that nobody has collected yet
        time.sleep(60)
        os._exit(0)
    if isinstance(server, Runner):
        server.close()
    else:
        server.__exit__()
    assert os.waitpid(holder, os.WNOHANG) == (0, 0)
    os.kill(holder, 9)
    os.waitpid(holder, 0)
