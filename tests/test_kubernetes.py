"""The manifests fit the schemas of Kubernetes and KEDA, name one another rightly, and give nothing away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import psycopg
import pytest
from cloudcoil.models.keda import v1alpha1 as keda
from ruamel.yaml import YAML

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "kubernetes"


def manifests() -> list[tuple[str, dict[str, Any]]]:
    read = YAML(typ="safe").load_all
    files = sorted(FOLDER.glob("*.yaml"))
    return [
        (file.name, json.loads(json.dumps(one))) for file in files for one in read(file.read_text(encoding="utf-8"))
    ]


ALL = manifests()
PODS = [
    (name, one, one["spec"].get("jobTemplate", one)["spec"]["template"]["spec"])
    for name, one in ALL
    if one["kind"] in {"Deployment", "Job", "CronJob"}
]


def closed(schema: Any) -> Any:
    """The schema, refusing fields that it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(one) for key, one in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize(("file", "manifest"), ALL, ids=lambda one: one if isinstance(one, str) else one["kind"])
def test_a_manifest_fits_its_schema(file: str, manifest: dict[str, Any]) -> None:
    if manifest["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(manifest, closed(getattr(keda, manifest["kind"]).model_json_schema()))
    else:
        kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_a_field_that_is_no_field_is_refused() -> None:
    wrong = next(one for _, one in ALL if one["kind"] == "ScaledObject")
    wrong = wrong | {"spec": wrong["spec"] | {"maxReplicas": 1}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, closed(keda.ScaledObject.model_json_schema()))
    deployment = next(one for _, one in ALL if one["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment | {"spec": deployment["spec"] | {"replica": 1}}, "1.34", strict=True)


def test_whatever_a_manifest_names_is_there() -> None:
    names = {(one["kind"], one["metadata"]["name"]) for _, one in ALL}
    for _, one in ALL:
        if one["kind"] == "ScaledObject":
            assert ("Deployment", one["spec"]["scaleTargetRef"]["name"]) in names
            wanted = {trigger["authenticationRef"]["name"] for trigger in one["spec"]["triggers"]}
            assert {("TriggerAuthentication", name) for name in wanted} <= names
    for _, _, pod in PODS:
        for container in pod["containers"]:
            assert {("ConfigMap", one["configMapRef"]["name"]) for one in container["envFrom"]} <= names
            assert {
                ("Secret", one["valueFrom"]["secretKeyRef"]["name"]) for one in container["env"] if "valueFrom" in one
            } <= names


def test_only_what_signs_sees_the_signing_key() -> None:
    holders = {
        one["metadata"]["name"]
        for _, one, pod in PODS
        if any(volume.get("secret", {}).get("secretName") == "agentmesh-key" for volume in pod["volumes"])
    }
    assert holders == {"agentmesh-agents", "agentmesh-gateway"}


def test_nothing_runs_as_root_or_writes_its_own_image() -> None:
    for _, one, pod in PODS:
        assert pod["securityContext"]["runAsNonRoot"], one["metadata"]["name"]
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_workers_have_longer_to_end_than_they_take() -> None:
    from agentmesh.infrastructure.settings import load

    drain = load(environ={}).worker.drain
    workers = [pod for _, one, pod in PODS if one["metadata"]["name"] in {"agentmesh-agents", "agentmesh-tools"}]
    assert len(workers) == 2
    assert all(pod["terminationGracePeriodSeconds"] > drain for pod in workers)


def test_the_rows_that_scale_are_read_by_indexes_of_open_rows(own_database: str) -> None:
    queries = [
        trigger["metadata"]["query"]
        for _, one in ALL if one["kind"] == "ScaledObject"
        for trigger in one["spec"]["triggers"] if trigger["type"] == "postgresql"
    ]  # fmt: skip
    assert len(queries) == 2
    with psycopg.connect(own_database) as connection:
        connection.execute("SET enable_seqscan = off")
        for query in queries:
            plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {query}".encode()).fetchall())
            assert "Seq Scan" not in plan
            assert "_ready" in plan
