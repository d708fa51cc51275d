"""The generated definition: up to date, small, structural."""

from pathlib import Path
from typing import Any

import yaml
from pds_operator.schema import crd

ROOT = Path(__file__).parents[2]


def nodes(schema: Any, path: str = ""):
    if isinstance(schema, dict):
        yield path, schema
        for key, value in schema.items():
            yield from nodes(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for value in schema:
            yield from nodes(value, path)


def spec_schema() -> dict:
    [version] = crd.definition()["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]["properties"]["spec"]


def test_the_files_are_up_to_date():
    assert (ROOT / "crds/pdservings.yaml").read_text() == crd.text()
    chart = ROOT / "charts/pdserving/templates/crd.yaml"
    assert chart.read_text() == crd.chart_template()


def test_it_fits_into_an_annotation():
    assert len(crd.text()) < 262_144


def test_the_template_keeps_the_definition_when_the_chart_goes():
    assert "helm.sh/resource-policy: keep" in crd.chart_template()


def test_it_has_no_default_and_nothing_that_is_not_structural():
    for path, node in nodes(spec_schema()):
        for key in ("$ref", "anyOf", "default", "title", "$defs"):
            if not path.endswith("properties"):
                assert key not in node, (path, key)


def test_everything_that_cel_may_reach_is_bounded():
    for path, node in nodes(spec_schema()):
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, path
        if isinstance(node.get("additionalProperties"), dict):
            assert "maxProperties" in node, path


def test_columns_are_those_of_the_contract():
    [version] = crd.definition()["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    assert [item["name"].upper() for item in columns if not item.get("priority")] == [
        "MODEL",
        "PREFILL",
        "DECODE",
        "READY",
        "ROLLOUT",
        "AGE",
    ]


def test_examples_are_parsed_by_the_spec():
    from pds_operator import schema

    for path in sorted((ROOT / "examples").glob("*.yaml")):
        for obj in yaml.safe_load_all(path.read_text()):
            if obj and obj.get("kind") == "PDServing":
                assert schema.parse(obj["spec"]).roles, path
