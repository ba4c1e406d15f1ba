#!/usr/bin/env python3
# Lets the kernel run out of the host's memory: it kills the process that is named, as it has been made the first to go.
# What takes the memory are processes of their own, larger than any server, so that a second kill takes one of these.
import os
import signal
import sys
import time

MIB = 2**20
victim = sys.argv[1]
with open(f"/proc/{victim}/oom_score_adj", "w") as stream:
    stream.write("1000")


def lives():
    try:
        with open(f"/proc/{victim}/status") as stream:
            return "VmRSS" in stream.read()
    except FileNotFoundError:
        return False


def take(size):
    taken = []
    for _ in range(size // MIB):
        taken.append(bytearray(os.urandom(4096)) * (MIB // 4096))
        time.sleep(0.002)
    signal.pause()


children = []
deadline = time.monotonic() + 30
while lives() and time.monotonic() < deadline:
    if len(children) < 10:
        child = os.fork()
        if child == 0:
            take(100 * MIB)
        children.append(child)
    time.sleep(0.4)
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
sys.exit("the kernel killed nothing" if lives() else 0)
