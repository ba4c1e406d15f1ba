# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold a gateway's lock until another one has a model: hold.py LOCK URL KEY MODEL. Exit code 1: it did not get it."""

import fcntl
import json
import ssl
import sys
import time
import urllib.request

SECONDS = 120
# The certificate is the test's own.
CONTEXT = ssl._create_unverified_context()


def has_model(url, key, model):
    request = urllib.request.Request(url + "/v1/models", headers={"Authorization": "Bearer " + key})
    with urllib.request.urlopen(request, timeout=5, context=CONTEXT) as answer:
        return model in [entry["id"] for entry in json.load(answer)["data"]]


def main(lock, url, key, model):
    end = time.monotonic() + SECONDS
    with open(lock, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        while time.monotonic() < end:
            if has_model(url, key, model):
                return 0
            time.sleep(0.2)
    return 1


sys.exit(main(*sys.argv[1:]))
