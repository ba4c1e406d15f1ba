# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests, as kustomize builds and Kubernetes' schemas read them, against the plan."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ansible_collections.magi.llama.plugins.module_utils._export.formats import FORMATS
from ansible_collections.magi.llama.plugins.module_utils._export.kubernetes import GATEWAY, object_names
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import DEFAULT_IMAGE, HostPlan, workloads_of

from .conftest import SETTINGS, documents, host_plan, program, run, server, written

KEY = "/run/secrets/llama/api-key"
Objects = dict[tuple[str, str], dict[str, Any]]


def built(folder: Path, of: str = "base") -> Objects:
    """The objects that kustomize makes of a folder, by kind and name; each is valid."""
    found = documents(run(program("kustomize"), "build", str(folder / of)))
    for one in found:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def container(objects: Objects, name: str) -> dict[str, Any]:
    (only,) = objects["Deployment", name]["spec"]["template"]["spec"]["containers"]
    return dict(only)


def as_run(words: list[str]) -> list[str]:
    """Words as the kubelet has them when it has looked for variables."""
    return [word.replace("$$(", "$(") for word in words]


@pytest.mark.parametrize("of", ["base", "overlays/claim", "overlays/host-folders"])
def test_every_planned_server_is_a_deployment_with_the_plans_figures(tmp_path: Path, plan: HostPlan, of: str) -> None:
    objects = built(written(tmp_path, "kubernetes", plan), of)
    wanted = {one["name"]: one for one in plan.plan["servers"][:3]}
    names = {"llama-" + name.replace("_", "-"): one for name, one in wanted.items()}
    assert {name for kind, name in objects if kind == "Deployment"} == {*names, GATEWAY}
    for name, planned in names.items():
        made = container(objects, name)
        argv = as_run([*made["command"], *made["args"]])
        changed = {1: (planned["argv"][0], SETTINGS.binary), 7: ("127.0.0.1", "0.0.0.0")}
        for word, (before, after) in zip([0, 6], changed.values(), strict=True):
            assert (planned["argv"][word], argv[word]) == (before, after)
        assert argv[-2:] == ["--api-key-file", KEY]
        same = [place for place in range(len(argv) - 1) if place not in (0, 6)]
        assert [argv[place] for place in same] == [planned["argv"][place] for place in same]
        assert made["resources"]["limits"]["memory"] == str(planned["memory_max_bytes"])
        assert made["resources"]["requests"]["memory"] == str(planned["memory"]["ram_bytes"])
        assert made["ports"] == [{"name": "http", "containerPort": planned["port"]}]
        assert objects["Service", name]["spec"]["ports"][0]["port"] == planned["port"]
        assert objects["PodDisruptionBudget", name]["spec"]["maxUnavailable"] == 1
        mounts = {one["mountPath"]: one.get("readOnly") for one in made["volumeMounts"]}
        assert mounts["/models"] is True and planned["argv"][2].startswith("/models/")
        assert [one for one, is_read_only in mounts.items() if not is_read_only] == ["/tmp"]


def test_probes_know_the_server_by_its_model_and_ask_it_for_a_token(tmp_path: Path, plan: HostPlan) -> None:
    objects = built(written(tmp_path, "kubernetes", plan))
    second = container(objects, "llama-qwen3-8b-q4-k-m-2")
    ready = second["readinessProbe"]["exec"]["command"]
    assert ready == second["startupProbe"]["exec"]["command"] and ready[-2:] == ["8081", "qwen3-8b-q4_k_m"]
    assert '"n_predict": 1' in " ".join(second["livenessProbe"]["exec"]["command"])
    startup = second["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 120
    assert "/v1/embeddings" in container(objects, "llama-bge-m3")["livenessProbe"]["exec"]["command"]


def test_servers_finish_their_requests_before_they_are_told_to_stop(tmp_path: Path, plan: HostPlan) -> None:
    objects = built(written(tmp_path, "kubernetes", plan))
    pod = objects["Deployment", "llama-qwen3-8b-q4-k-m-2"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[1:-1] == ["/run/magi-probe/probe.sh", "drain", "8081", "qwen3-8b-q4_k_m"]
    # After it the server has its stop_timeout.
    assert pod["terminationGracePeriodSeconds"] > int(command[-1]) + 30
    gateway = objects["Deployment", GATEWAY]["spec"]["template"]["spec"]
    assert gateway["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    assert gateway["terminationGracePeriodSeconds"] > int(command[-1])


def test_pods_are_confined_and_spread_and_only_the_gateway_reaches_servers(tmp_path: Path, plan: HostPlan) -> None:
    objects = built(written(tmp_path, "kubernetes", plan))
    for (kind, name), made in objects.items():
        if kind != "Deployment":
            continue
        pod = made["spec"]["template"]["spec"]
        security = pod["containers"][0]["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        assert security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False and pod["automountServiceAccountToken"] is False
        labels = made["spec"]["template"]["metadata"]["labels"]
        (spread,) = pod["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items(), name
    policy = objects["NetworkPolicy", "llama-server"]["spec"]
    gateway = objects["Deployment", GATEWAY]["spec"]["template"]["metadata"]["labels"]
    assert policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() <= gateway.items()


def test_servers_on_gpus_ask_for_as_many_as_the_plan_gives_them(tmp_path: Path, plan: HostPlan) -> None:
    objects = built(written(tmp_path, "kubernetes", plan))
    assert container(objects, "llama-bge-m3")["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in container(objects, "llama-qwen3-8b-q4-k-m")["resources"]["limits"]


def test_image_that_no_registry_has_is_not_asked_of_one(tmp_path: Path, plan: HostPlan) -> None:
    one = host_plan(server("a", 8080))
    for image, wanted, warned in ((DEFAULT_IMAGE, f"localhost/{DEFAULT_IMAGE}", 1), ("reg/x:1", "reg/x:1", 0)):
        settings = replace(SETTINGS, image=image)
        objects = built(written(tmp_path / str(warned), "kubernetes", one, settings=settings))
        made, gateway = container(objects, "llama-a"), container(objects, GATEWAY)
        assert (made["image"], made["imagePullPolicy"], gateway["imagePullPolicy"]) == (wanted, *["IfNotPresent"] * 2)
        notes = FORMATS["kubernetes"].notes(workloads_of([one], settings)[0], settings)
        assert len(notes) == warned and all("export_image" in note and wanted in note for note in notes)


def test_key_is_a_reference_to_the_secret(tmp_path: Path, plan: HostPlan) -> None:
    pod = built(written(tmp_path, "kubernetes", plan))["Deployment", "llama-bge-m3"]["spec"]["template"]["spec"]
    (secret,) = (one["secret"] for one in pod["volumes"] if "secret" in one)
    assert secret["secretName"] == "llama-key"
    # Without subPath a changed Secret would reach the probes of servers that still have the key before.
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "api-key")
    assert (mount["mountPath"], mount["subPath"]) == (KEY, secret["items"][0]["path"])
    without = built(written(tmp_path / "open", "kubernetes", host_plan(server("a", 8080))))
    assert "api-key" not in str(without["Deployment", "llama-a"]) and "Secret" not in {kind for kind, _name in without}


def test_equal_servers_of_several_hosts_are_replicas_and_others_keep_their_own(tmp_path: Path) -> None:
    hosts = [host_plan(server("a", 8080), server("b", 8081), name="one"), host_plan(server("a", 8080), name="two")]
    hosts.append(host_plan(server("b", 8090), name="three"))
    objects = built(written(tmp_path, "kubernetes", *hosts))
    found = {name: made["spec"]["replicas"] for (kind, name), made in objects.items() if kind == "Deployment"}
    assert found == {"llama-a": 2, "llama-b-one": 1, "llama-b-three": 1, GATEWAY: 2}


def test_names_are_unique_and_fit_into_dns() -> None:
    names = ["a_b", "a-b", "x" * 80, "gateway"]
    workloads, _warnings = workloads_of([host_plan(*(server(name, 8080) for name in names))], SETTINGS)
    found = object_names(workloads)
    assert len({*found.values(), GATEWAY}) == 5 and all(len(name) <= 46 for name in found.values())


def test_claims_hold_the_models(tmp_path: Path) -> None:
    big = server("a", 8080)
    big["memory"]["weights_bytes"] = 40 * 1024**3
    objects = built(written(tmp_path, "kubernetes", host_plan(big, server("b", 8081))), "overlays/claim")
    spec = objects["PersistentVolumeClaim", "models-models"]["spec"]
    assert spec["accessModes"] == ["ReadWriteMany"] and spec["resources"]["requests"]["storage"] == "45Gi"
    (volume,) = built(tmp_path, "overlays/host-folders")["Deployment", "llama-a"]["spec"]["template"]["spec"][
        "volumes"
    ][:1]
    assert volume == {"name": "models-models", "hostPath": {"path": "/models", "type": "Directory"}}


def test_model_outside_of_the_scanned_folders_is_mounted_too(tmp_path: Path) -> None:
    one = replace(host_plan(server("a", 8080)), roots=["/elsewhere"])
    mounts = container(built(written(tmp_path, "kubernetes", one)), "llama-a")["volumeMounts"]
    assert {"name": "models-models", "mountPath": "/models", "readOnly": True} in mounts


def test_claims_are_named_by_their_folder_alone(tmp_path: Path) -> None:
    paths = ["/models", "/a/b", "/a-b", "/A/b", "/srv/" + "x" * 80]
    servers = [server(f"s{number}", 8080 + number) for number in range(len(paths))]
    for path, one in zip(paths, servers, strict=True):
        one["argv"][2] = f"{path}/m.gguf"
    settings = replace(SETTINGS, claim="probe.api-key", access_mode="ReadWriteOnce")
    all_of_them = replace(host_plan(*servers), roots=paths)
    objects = built(written(tmp_path / "all", "kubernetes", all_of_them, settings=settings), "overlays/claim")
    first = replace(host_plan(servers[0]), roots=paths)
    alone = built(written(tmp_path / "one", "kubernetes", first, settings=settings), "overlays/claim")
    claims = {name for kind, name in objects if kind == "PersistentVolumeClaim"}
    assert len(claims) == len(paths) and {"probe.api-key-models", "probe.api-key-a-b"} < claims
    assert ("PersistentVolumeClaim", "probe.api-key-models") in alone
    assert all(objects["PersistentVolumeClaim", name]["spec"]["accessModes"] == ["ReadWriteOnce"] for name in claims)
    for number in range(len(paths)):
        names = [
            one["name"] for one in objects["Deployment", f"llama-s{number}"]["spec"]["template"]["spec"]["volumes"]
        ]
        assert len({*names}) == len(names) and all(
            re.fullmatch("[a-z0-9]([a-z0-9-]{,61}[a-z0-9])?", one) for one in names
        )


def test_file_that_a_server_writes_has_its_folder_mounted(tmp_path: Path) -> None:
    one = server("a", 8080)
    one["argv"] += ["--slot-save-path", "/var/slots", "--lookup-cache-dynamic", "/var/cache/lookup.bin"]
    mounts = container(built(written(tmp_path, "kubernetes", host_plan(one))), "llama-a")["volumeMounts"]
    assert [one["mountPath"] for one in mounts if not one.get("readOnly")] == ["/tmp", "/var/cache", "/var/slots"]
