# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Manifests for a cluster: a Deployment for each server and one for the gateway, as a kustomize base with overlays."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from . import probes, proxy
from .checks import check_containers, server_image
from .workloads import KEY_FILE, USER_ID, Settings, Workload, merged, path_slug

GATEWAY = "llama-gateway"
PROBE_MAP = "llama-probe"
GPU = "nvidia.com/gpu"
# Names of Services have up to 63 characters; a Deployment's Pods add 17 to its own.
NAME_CHARACTERS = 46
GIB = 1024**3
_PART_OF = {"app.kubernetes.io/part-of": "magi.llama", "app.kubernetes.io/managed-by": "magi.llama"}
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    # With many files of models a change of their group would take long, and they are read-only.
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def kubernetes_files(workloads: Sequence[Workload], settings: Settings) -> dict[str, Any]:
    """Return each file by its path: text, the content of a YAML file, or a list of the documents in one."""
    check_containers(workloads, settings, share_gpus=False)
    servers = merged(workloads)
    roots = sorted({folder for one in servers for folder in one.folders})
    claims = {root: f"{settings.claim}-{path_slug(root)}" for root in roots}
    needs_key = any(one.key_file for one in servers)
    names = object_names(servers)
    files = proxy.proxy_files(servers, lambda one: names[one.name], resolves=False)
    found: dict[str, Any] = {
        f"base/{names[one.name]}.yaml": _server_objects(names[one.name], one, settings, claims) for one in servers
    }
    found["base/gateway.yaml"] = _gateway_objects(settings, needs_key)
    found["base/network.yaml"] = [_network_policy()]
    found[f"base/{probes.FILE}"] = probes.SCRIPT
    found.update({f"base/gateway/{name}": text for name, text in files.items()})
    found["base/kustomization.yaml"] = _kustomization(
        resources=sorted(name.removeprefix("base/") for name in found if name.endswith(".yaml")),
        configMapGenerator=[
            {"name": PROBE_MAP, "files": [probes.FILE]},
            {"name": GATEWAY, "files": [f"gateway/{name}" for name in sorted(files)]},
        ],
    )
    return {**found, **_claim_overlay(servers, settings, claims), **_host_folder_overlay(servers, names)}


def object_names(servers: Sequence[Workload]) -> dict[str, str]:
    """The name of each server's objects, by its own: unique, and one that the cluster's DNS can have."""
    plain = {one.name: "llama-" + re.sub(r"[^a-z0-9]+", "-", one.name.lower()).strip("-") for one in servers}
    counts = Counter([*plain.values(), GATEWAY, PROBE_MAP])
    found = {}
    for name, short in plain.items():
        if counts[short] > 1 or len(short) > NAME_CHARACTERS:
            short = f"{short[: NAME_CHARACTERS - 7].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        found[name] = short
    return found


def _volume_name(root: str) -> str:
    """A volume's name, which has no dots and is none of the other volumes'."""
    return f"models-{path_slug(root)}"


def _label_value(text: str) -> str:
    plain = re.sub(r"[^a-zA-Z0-9._-]", "-", text)[:63]
    return plain.strip("-._")


def _kustomization(**content: Any) -> dict[str, Any]:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **content}


def _server_objects(name: str, one: Workload, settings: Settings, claims: Mapping[str, str]) -> list[dict[str, Any]]:
    selector = {"app.kubernetes.io/name": "llama-server", "app.kubernetes.io/instance": name}
    labels = {**selector, "magi.llama/model": _label_value(one.model_id), **_PART_OF}
    notes = {"magi.llama/server": one.name, "magi.llama/revision": one.revision}
    pod = {
        **_pod(probes.DRAIN_SECONDS + probes.DRAIN_EXTRA_SECONDS + one.stop_seconds),
        "topologySpreadConstraints": [_spread({"magi.llama/model": _label_value(one.model_id)})],
        "containers": [_server_container(one, settings)],
        "volumes": [
            *({"name": _volume_name(root), "persistentVolumeClaim": _claim(claims[root])} for root in one.folders),
            *_volumes(one.writable),
            {"name": "probe", "configMap": {"name": PROBE_MAP}},
            *_key_volume(settings, bool(one.key_file)),
        ],
    }
    return [
        _deployment(name, labels, selector, one.replicas, {"annotations": notes, "pod": pod}),
        _service(name, labels, selector, {"http": one.port}),
        _budget(name, labels, selector),
    ]


def _server_container(one: Workload, settings: Settings) -> dict[str, Any]:
    ready, alive = (_exec(command) for command in (probes.ready_command(one), probes.alive_command(one)))
    gpus = {GPU: str(one.gpus)} if one.gpus else {}
    return {
        "name": "llama-server",
        "image": server_image(settings),
        "imagePullPolicy": "IfNotPresent",
        "command": _words(one.argv[:1]),
        "args": _words(one.argv[1:]),
        **({"env": [{"name": name, "value": _word(value)} for name, value in one.env]} if one.env else {}),
        "ports": [{"name": "http", "containerPort": one.port}],
        "startupProbe": {
            **ready,
            "periodSeconds": one.check_seconds,
            "timeoutSeconds": probes.READY_SECONDS,
            "failureThreshold": math.ceil(one.start_seconds / one.check_seconds),
        },
        "readinessProbe": {**ready, "periodSeconds": 5, "timeoutSeconds": probes.READY_SECONDS, "failureThreshold": 2},
        "livenessProbe": {
            **alive,
            "periodSeconds": 60,
            "timeoutSeconds": one.patience_seconds + probes.ALIVE_EXTRA_SECONDS,
            "failureThreshold": 3,
        },
        # A TERM ends streams at once.
        "lifecycle": {"preStop": _exec(probes.drain_command(one))},
        "resources": {
            "requests": {"memory": str(one.request_bytes), "cpu": f"{one.cpu_millis}m", **gpus},
            # Without a limit of CPU: threads that wait for a quota hold up all others.
            "limits": {"memory": str(one.limit_bytes), **gpus},
        },
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [
            *({"name": _volume_name(root), "mountPath": root, "readOnly": True} for root in one.folders),
            *_mounts(one.writable),
            {"name": "probe", "mountPath": probes.PLACE, "readOnly": True},
            *_key_mount(bool(one.key_file)),
        ],
    }


def _gateway_objects(settings: Settings, needs_key: bool) -> list[dict[str, Any]]:
    selector = {"app.kubernetes.io/name": GATEWAY, "app.kubernetes.io/instance": GATEWAY}
    labels = {**selector, **_PART_OF}
    health = {"httpGet": {"path": "/health", "port": "http"}}
    container = {
        "name": "haproxy",
        "image": settings.gateway_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", f"{proxy.SOURCE}/{proxy.START}"],
        "ports": [
            {"name": "http", "containerPort": proxy.PORT},
            {"name": "metrics", "containerPort": proxy.METRICS_PORT},
        ],
        "startupProbe": {**health, "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 2},
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 5},
        "lifecycle": {"preStop": _exec(["sleep", str(probes.LEAVE_SECONDS)])},
        "resources": {
            "requests": {"memory": str(GIB // 4), "cpu": "100m"},
            "limits": {"memory": str(proxy.MEMORY_BYTES)},
        },
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "config", "mountPath": proxy.SOURCE, "readOnly": True},
            {"name": "run", "mountPath": proxy.PLACE},
            *_key_mount(needs_key),
        ],
    }
    pod = {
        # Its streams are those that servers finish.
        **_pod(probes.DRAIN_SECONDS + probes.DRAIN_EXTRA_SECONDS),
        "topologySpreadConstraints": [_spread({"app.kubernetes.io/instance": GATEWAY})],
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": GATEWAY}},
            {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            *_key_volume(settings, needs_key),
        ],
    }
    return [
        _deployment(GATEWAY, labels, selector, 2, {"pod": pod}),
        _service(GATEWAY, labels, selector, {"http": proxy.PORT, "metrics": proxy.METRICS_PORT}),
        _budget(GATEWAY, labels, selector),
    ]


def _pod(stop_seconds: int) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        # The variables that it would set for each Service include LLAMA_... ones.
        "enableServiceLinks": False,
        "securityContext": _POD_SECURITY,
        "terminationGracePeriodSeconds": stop_seconds,
    }


def _deployment(
    name: str, labels: Mapping[str, str], selector: Mapping[str, str], replicas: int, template: Mapping[str, Any]
) -> dict[str, Any]:
    notes = {"annotations": template["annotations"]} if "annotations" in template else {}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": dict(selector)},
            # Where there is no room for a second one, the new Pod waits and the old one serves.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": dict(labels), **notes}, "spec": template["pod"]},
        },
    }


def _service(
    name: str, labels: Mapping[str, str], selector: Mapping[str, str], ports: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "selector": dict(selector),
            "ports": [{"name": port, "port": number, "targetPort": port} for port, number in ports.items()],
        },
    }


def _budget(name: str, labels: Mapping[str, str], selector: Mapping[str, str]) -> dict[str, Any]:
    # With minAvailable a node with the only replica could never be drained.
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(selector)}},
    }


def _network_policy() -> dict[str, Any]:
    """Only the gateway reaches the servers."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "llama-server", "labels": dict(_PART_OF)},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "llama-server"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": GATEWAY}}}]}],
        },
    }


def _spread(labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(labels)},
    }


def _exec(command: Sequence[str]) -> dict[str, Any]:
    # Not a container's command: nothing is put in here.
    return {"exec": {"command": list(command)}}


def _word(value: str) -> str:
    """A text as it is: Kubernetes puts in variables at $(NAME)."""
    return value.replace("$(", "$$(")


def _words(values: Sequence[str]) -> list[str]:
    return [_word(value) for value in values]


def _claim(name: str) -> dict[str, Any]:
    return {"claimName": name, "readOnly": True}


def _volumes(writable: Sequence[str]) -> list[dict[str, Any]]:
    return [{"name": f"scratch-{number}", "emptyDir": {}} for number, _path in enumerate(["/tmp", *writable])]


def _mounts(writable: Sequence[str]) -> list[dict[str, Any]]:
    return [{"name": f"scratch-{number}", "mountPath": path} for number, path in enumerate(["/tmp", *writable])]


def _key_volume(settings: Settings, needed: bool) -> list[dict[str, Any]]:
    items = [{"key": "api-key", "path": "api-key"}]
    return [{"name": "api-key", "secret": {"secretName": settings.secret, "items": items}}] if needed else []


def _key_mount(needed: bool) -> list[dict[str, Any]]:
    # A single file stays as it is when the Secret changes: servers read it once, and probes would send another key.
    file = {"mountPath": KEY_FILE, "subPath": KEY_FILE.rpartition("/")[2], "readOnly": True}
    return [{"name": "api-key", **file}] if needed else []


def _claim_overlay(servers: Sequence[Workload], settings: Settings, claims: Mapping[str, str]) -> dict[str, Any]:
    """The base with the claims for the models, large enough for those of the plan."""
    objects = []
    for root, name in claims.items():
        sizes = {one.model_id: one.weights_bytes for one in servers if root in one.folders}
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "labels": dict(_PART_OF)},
                "spec": {
                    "accessModes": [settings.access_mode],
                    "resources": {"requests": {"storage": f"{math.ceil(sum(sizes.values()) * 1.1 / GIB) or 1}Gi"}},
                },
            }
        )
    content = _kustomization(resources=["../../base", "models.yaml"])
    return {"overlays/claim/kustomization.yaml": content, "overlays/claim/models.yaml": objects}


def _host_folder_overlay(servers: Sequence[Workload], names: Mapping[str, str]) -> dict[str, Any]:
    """The base with the models in the same folders of every node, as the hosts of the inventory have them."""
    patches = []
    for one in servers:
        steps = [
            {
                "op": "replace",
                "path": f"/spec/template/spec/volumes/{number}",
                "value": {"name": _volume_name(root), "hostPath": {"path": root, "type": "Directory"}},
            }
            for number, root in enumerate(one.folders)
        ]
        patches.append({"target": {"kind": "Deployment", "name": names[one.name]}, "patch": json.dumps(steps)})
    return {"overlays/host-folders/kustomization.yaml": _kustomization(resources=["../../base"], patches=patches)}
