"""What the documentation says of the API is what it has."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.web.metrics import Figures
from pipeline.web.shapes import GpuMemory
from tests.web.conftest import Api

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_endpoint_is_documented_and_no_other(api: Api) -> None:
    paths = api.app.openapi()["paths"]
    there = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    documented = re.findall(r"^\| `([A-Z]+) (/\S*)` \|", TEXT, flags=re.MULTILINE)
    assert sorted(documented) == sorted(there)


async def test_every_metric_is_documented_and_no_other(api: Api) -> None:
    api.world.gpu = GpuMemory(used_bytes=1, total_bytes=2)
    services = api.world.services()
    figures = Figures(services.host(), services.admission, None, await services.counts(), await services.engine())
    page = api.metrics.page(figures).decode()
    there = {
        name for name in re.findall(r"^# TYPE (nightshift_\w+)", page, re.MULTILINE) if not name.endswith("_created")
    }
    assert set(re.findall(r"^\| `(nightshift_\w+)` \|", TEXT, flags=re.MULTILINE)) == there


def test_the_openapi_description_says_what_a_key_is_for(api: Api) -> None:
    described = api.app.openapi()
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    open_to_all = [
        path for path, methods in described["paths"].items() if "security" not in next(iter(methods.values()))
    ]
    assert open_to_all == ["/health"]
