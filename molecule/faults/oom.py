#!/usr/bin/env python3
# Uses up the host's memory. The kernel kills the given process first, because its OOM score is raised.
# The memory is allocated by child processes that are larger than any server, so a second kill hits one of them.
import os
import signal
import sys
import time

MIB = 2**20
victim = sys.argv[1]
with open(f"/proc/{victim}/oom_score_adj", "w") as stream:
    stream.write("1000")


def is_alive():
    try:
        with open(f"/proc/{victim}/status") as stream:
            return "VmRSS" in stream.read()
    except FileNotFoundError:
        return False


def allocate(size):
    taken = []
    for _ in range(size // MIB):
        taken.append(bytearray(os.urandom(4096)) * (MIB // 4096))
        time.sleep(0.002)
    signal.pause()


children = []
deadline = time.monotonic() + 30
while is_alive() and time.monotonic() < deadline:
    if len(children) < 10:
        child = os.fork()
        if child == 0:
            allocate(100 * MIB)
        children.append(child)
    time.sleep(0.4)
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
sys.exit("the kernel killed nothing" if is_alive() else 0)
