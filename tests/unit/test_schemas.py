# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The JSON Schemas: they are valid, allow no additional keys, and match the loaders."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ansible_collections.magi.llama.plugins.module_utils._archive.archive import BACKUP
from ansible_collections.magi.llama.plugins.module_utils._core.documents import Document, Fields
from ansible_collections.magi.llama.plugins.module_utils._deployment import state_files
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import (
    DEPLOYMENT,
    read_previous_deployment,
    read_record,
)
from ansible_collections.magi.llama.plugins.module_utils._health.observations import OBSERVED, migrated_version_1
from ansible_collections.magi.llama.plugins.module_utils._health.status import STATUS
from ansible_collections.magi.llama.plugins.module_utils._models.registry_file import REGISTRY, Kept
from ansible_collections.magi.llama.plugins.module_utils._models.scan import scan
from ansible_collections.magi.llama.plugins.module_utils._output import rollout_summary
from ansible_collections.magi.llama.plugins.module_utils._output.event import DATA, EVENT
from ansible_collections.magi.llama.plugins.module_utils._output.result_document import KINDS, RESULT
from ansible_collections.magi.llama.plugins.module_utils._output.rollout_summary import ROLLOUT
from ansible_collections.magi.llama.plugins.module_utils._plan.document import PLAN
from support import gguf_files as make
from support.schemas import SCHEMAS, errors, schema
from support.version_1 import recorded

DOCUMENTS = {
    document.name: document
    for document in (REGISTRY, DEPLOYMENT, OBSERVED, STATUS, PLAN, ROLLOUT, RESULT, EVENT, BACKUP)
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_schema_is_valid_and_has_loaders_version(document: Document) -> None:
    content = schema(document.name)
    jsonschema.Draft202012Validator.check_schema(content)
    assert content["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert content["properties"]["schema_version"]["const"] == document.version
    assert {"schema_version", "collection_version"} <= set(content["required"])
    assert content["additionalProperties"] is False


def test_schemas_all_belong_to_a_document() -> None:
    assert {path.name.partition(".")[0] for path in SCHEMAS.iterdir()} == set(DOCUMENTS)


def test_kinds_of_result_are_those_of_its_schema() -> None:
    assert schema("result")["properties"]["kind"]["enum"] == list(KINDS)


def test_types_of_event_and_their_data_are_those_of_its_schema() -> None:
    content = schema("event")
    assert content["properties"]["type"]["enum"] == list(DATA)
    assert {kind: set(part["properties"]) for kind, part in content["$defs"].items()} == {
        kind: {*shape.required, *shape.optional} for kind, shape in DATA.items()
    }
    assert [one["if"]["properties"]["type"]["const"] for one in content["allOf"]] == list(DATA)


# An incomplete scan's data for its next slice is not part of the document.
INTERNAL = {"registry": {"tried"}}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_schema_has_every_key_of_its_loader(document: Document) -> None:
    content = schema(document.name)
    keys = {*document.shape.required, *document.shape.optional} - INTERNAL.get(document.name, set())
    assert keys <= set(content["properties"])
    for key, shape in document.shape.required.items():
        if isinstance(shape, list) and isinstance(shape[0], Fields):
            described = [part["properties"] for part in parts_of(content, content["properties"][key]["items"])]
            assert all(shape[0].required.keys() <= properties.keys() for properties in described)


def parts_of(content: dict[str, Any], items: dict[str, Any]) -> list[dict[str, Any]]:
    references = [part["$ref"] for part in items.get("anyOf", [items])]
    return [content["$defs"][reference.rpartition("/")[2]] for reference in references]


@pytest.fixture
def registry(tmp_path: Path) -> dict[str, Any]:
    """A real scan of a model, a companion and a broken file, with checksums."""
    make.small_model(tmp_path / "a-Q4_K_M.gguf")
    make.small_model(tmp_path / "a-vocab.gguf", general__type="vocab")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    content = scan([str(tmp_path)], Kept(), checksums=True).content
    assert (len(content["models"]), len(content["companions"]), len(content["rejected"])) == (1, 1, 1)
    return content


@pytest.fixture
def deployment(tmp_path: Path) -> dict[str, Any]:
    """The recorded state of a real host, migrated."""
    import json

    for name in ("servers.json", "previous.json"):
        (tmp_path / name).write_text(json.dumps(recorded(name)))
    record, previous = read_record(str(tmp_path)), read_previous_deployment(str(tmp_path))
    [file] = state_files.state_files(str(tmp_path), record, previous)[0]
    content: dict[str, Any] = json.loads(file.content)
    return content


def test_registry_of_scan_is_valid(registry: dict[str, Any]) -> None:
    assert errors("registry", registry) == []


def test_migrated_state_is_valid(deployment: dict[str, Any]) -> None:
    assert errors("deployment", deployment) == []
    observed = OBSERVED.stamp({"servers": migrated_version_1(recorded("ready.json"))})
    assert errors("observed", observed) == []


def test_rollout_is_valid() -> None:
    begun = rollout_summary.begin()
    plan = {"servers": [{"name": "a", "action": "restart", "revision": "r"}]}
    hosts = {
        "a": rollout_summary.updated(begun, plan, {"servers": [{}], "ready": 1}, False),
        "b": rollout_summary.failed(begun, plan, {}, "Check", "no", "ansible-playbook"),
        "c": begun,
    }
    assert errors("rollout", rollout_summary.summary(hosts, 1.5)) == []


@pytest.mark.parametrize(
    "place", [(), ("models", 0), ("models", 0, "fingerprint"), ("companions", 0), ("rejected", 0)], ids=str
)
def test_registry_with_undocumented_key_is_invalid(registry: dict[str, Any], place: tuple[Any, ...]) -> None:
    assert len(errors("registry", with_key(registry, place))) == 1


@pytest.mark.parametrize(
    "place", [(), ("deployed",), ("deployed", "servers", 0), ("deployed", "start"), ("previous",)], ids=str
)
def test_deployment_with_undocumented_key_is_invalid(deployment: dict[str, Any], place: tuple[Any, ...]) -> None:
    assert errors("deployment", with_key(deployment, place)) != []


def with_key(document: dict[str, Any], place: tuple[Any, ...]) -> dict[str, Any]:
    document = copy.deepcopy(document)
    part: Any = document
    for key in place:
        part = part[key]
    part["undocumented"] = 1
    return document
