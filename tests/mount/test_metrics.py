"""Metrics of a real mount, and that documents, dashboard and alerts know them by their names."""

from __future__ import annotations

import importlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mounts import Mount, mounted, wait_until
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "examples/grafana/latentfs.json"
RULES = ROOT / "examples/prometheus/latentfs.rules.yml"
PAGE = ROOT / "docs/metrics.md"

# Labels that Prometheus adds, and the one of histograms' buckets.
GIVEN_LABELS = {"instance", "job", "le"}
FUNCTIONS = {"by", "sum", "rate", "increase", "histogram_quantile"}
HISTOGRAM_SAMPLES = ("_bucket", "_sum", "_count")


class Told(NamedTuple):
    """A metric as it is exported or documented."""

    kind: str
    labels: frozenset[str]


class Measured(NamedTuple):
    mount: Mount
    url: str

    def page(self, path: str, *, accept: str = "*/*") -> tuple[int, str, str]:
        """Return status, content type and text of a page."""
        request = urllib.request.Request(self.url + path, headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()

    def samples(self) -> dict[str, float]:
        """Return all values by name and labels, as they are written."""
        lines = self.page("/metrics")[2].splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


@pytest.fixture(scope="module")
def measured(pictures_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """A mount that has been asked for some of everything."""
    path = tmp_path_factory.mktemp("measured") / "mnt"
    flags = ("--metrics", "127.0.0.1:0", "--pixel-share", "0.5", "--slow-read", "1ms")
    with mounted(pictures_store, path, "--read-only", "--prefetch", "0", *flags) as mount:
        found = re.search(r"metrics are served at (http://127\.0\.0\.1:\d+)/metrics", mount.log)
        assert found is not None, mount.log
        mount.wait_for_renderer()
        (path / "pictures/000.png").read_bytes()
        (path / "pictures/000.png").read_bytes()
        assert not (path / "missing").exists()
        yield Measured(mount, found[1])


@pytest.fixture(scope="module")
def exported(measured: Measured) -> dict[str, Told]:
    """All metrics by name, as they are queried; histograms without the ends of their samples."""
    exported: dict[str, Told] = {}
    for family in text_string_to_metric_families(measured.page("/metrics")[2]):
        labels = frozenset(label for sample in family.samples for label in sample.labels)
        kind, name = family.type, family.name
        if kind == "counter":
            name += "_total"
        elif name.endswith("_info"):  # in the plain format infos are gauges
            kind = "info"
        exported[name] = Told(kind, labels - {"le"})
    return exported


def test_a_read_is_counted_where_it_was_answered(measured: Measured) -> None:
    def rendered() -> float:
        samples = measured.samples()
        work = [value for name, value in samples.items() if "render_work_seconds_count{" in name]
        return sum(work) + samples['latentfs_reads_total{tier="miss"}']

    before = rendered()
    (measured.mount.path / "pictures/001.png").read_bytes()
    assert rendered() == before + 2
    samples = measured.samples()
    assert samples['latentfs_fuse_operations_total{errno="OK",op="read"}'] > 0
    assert samples['latentfs_fuse_operations_total{errno="ENOENT",op="lookup"}'] > 0
    assert samples['latentfs_fuse_operation_seconds_bucket{le="+Inf",op="read"}'] > 0
    assert samples["latentfs_mount_ready"] == 1
    assert samples['latentfs_renderer_ready{device="cpu"}'] == 1
    assert samples["latentfs_cache_misses_total"] >= 2
    assert samples['latentfs_store_bytes{kind="payloads"}'] > 0


def test_the_kernels_reads_are_a_tier_too(measured: Measured) -> None:
    def kernel_reads() -> float:
        return measured.samples()['latentfs_reads_total{tier="kernel"}']

    picture = measured.mount.path / "pictures/002.png"
    picture.read_bytes()
    before = kernel_reads()

    def is_counted() -> bool:
        picture.read_bytes()
        return kernel_reads() > before

    wait_until(is_counted, "a read is the kernel's")


def test_metrics_come_as_text_or_as_openmetrics(measured: Measured) -> None:
    status, content_type, text = measured.page("/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "# TYPE latentfs_read_seconds histogram" in text
    status, content_type, text = measured.page(
        "/metrics", accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    )
    assert (status, content_type.partition(";")[0]) == (200, "application/openmetrics-text")
    assert text.endswith("# EOF\n")


def test_a_mount_with_a_renderer_is_healthy_and_ready(measured: Measured) -> None:
    assert measured.page("/healthz")[0] == 200
    assert measured.page("/readyz")[0] == 200
    assert measured.page("/nothing")[0] == 404


def test_a_slow_read_has_a_line_with_its_stages_and_no_name(measured: Measured) -> None:
    path = measured.mount.path / "pictures/003.png"
    path.read_bytes()

    def line() -> str:
        inode = f"inode {path.stat().st_ino} "
        lines = [line for line in measured.mount.log.splitlines() if "slow read: " in line]
        return next((line for line in lines if inode in line and "tier miss" in line), "")

    wait_until(lambda: bool(line()), "the slow read is logged")
    _, _, documented = PAGE.read_text().partition("| Stage |")
    stages = re.findall(r"^\| `(\w+)` \|", documented, re.MULTILINE)
    assert re.findall(r", ([a-z]+) [\d.]+ s", line()) == stages
    # Nothing but figures between the words, so no name.
    words = re.sub(r"\d+(\.\d+)?", "", line().partition("slow read: ")[2])
    assert words.startswith(" s for a read of inode  ( bytes), tier miss, parked  s, fetch  s")
    assert re.fullmatch(r"[a-z ,()]+(; more since the last line)?", words)
    assert "003.png" not in measured.mount.log
    assert "003.latent" not in measured.mount.log


def test_a_failed_read_is_logged_without_the_name_of_its_source(
    store: Path, tmp_path: Path
) -> None:
    """Names of latent files may hold prompts."""
    from latentfs.store.store import Store
    from latentfs.store.tables import payload_key

    with Store.open(store, writable=True) as opened, opened.write() as transaction:
        found = transaction.resolve("/pictures/004.png")
        assert found is not None
        assert found[1].content is not None
        transaction.rows.delete("payloads", payload_key(found[1].content.payload, 0))
    with mounted(store, tmp_path / "mnt", "--read-only") as mount:
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / "pictures/004.png").read_bytes()
        assert f"inode {found[0]}: " in mount.log
        assert "004.latent" not in mount.log


# Names in documents


def test_the_documents_tell_all_metrics_with_kind_and_labels(exported: dict[str, Told]) -> None:
    documented: dict[str, Told] = {}
    for line in PAGE.read_text().splitlines():
        row = re.fullmatch(r"\| `((?:latentfs|process)_\w+)` \| (\w+) \|(.*?)\|.*\|", line)
        if row is not None:
            assert row[1] not in documented
            documented[row[1]] = Told(row[2], frozenset(re.findall(r"`(\w+)`", row[3])))
    assert documented == exported


def test_the_dashboard_asks_for_what_is_exported(exported: dict[str, Told]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) > 40
    for expression in expressions:
        check_expression(expression, exported)
    for panel in panels:
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown <= labels_of(target["expr"], exported), target
    for variable in dashboard["templating"]["list"][1:]:
        check_expression(re.sub(r", \w+\)$", ")", variable["query"]["query"]), exported)


def test_alerts_ask_for_what_is_exported(exported: dict[str, Told]) -> None:
    yaml: Any = importlib.import_module("yaml")
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    alerts = {rule["alert"]: rule for rule in group["rules"]}
    assert len(alerts) == len(group["rules"])
    for rule in alerts.values():
        check_expression(rule["expr"], exported)
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert shown <= labels_of(rule["expr"], exported)
    assert set(re.findall(r"^\| `(Latentfs\w+)` \|", PAGE.read_text(), re.MULTILINE)) == set(alerts)


def check_expression(expression: str, exported: dict[str, Told]) -> None:
    """Assert that all metrics and labels in a PromQL expression are exported ones."""
    unquoted = re.sub(r'"[^"]*"', '""', expression)
    for opening, closing in ("()", "{}", "[]"):
        assert unquoted.count(opening) == unquoted.count(closing), expression
    known = labels_of(expression, exported)
    for metric, selector in re.findall(r"(\w+){([^}]*)}", unquoted):
        selected = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert selected <= GIVEN_LABELS | told(metric, exported).labels, expression
    for grouping in re.findall(r"\bby \(([^)]*)\)", unquoted):
        assert set(grouping.replace(" ", "").split(",")) <= known, expression
    # All other words are functions, or there is one that nothing here knows.
    rest = re.sub(r"{[^}]*}|\[[^]]*\]|\bby \([^)]*\)|[\d.]+(?:e\d+)?\b", " ", unquoted)
    words = set(re.findall(r"\$?[a-z_]+", rest)) - FUNCTIONS - {"label_values"}
    assert words == set(metrics_of(expression)), expression


def metrics_of(expression: str) -> list[str]:
    return re.findall(r"\b(?:latentfs|process)_\w+|\bup\b", expression)


def labels_of(expression: str, exported: dict[str, Told]) -> set[str]:
    metrics = metrics_of(expression)
    assert metrics, expression
    return GIVEN_LABELS.union(*(told(metric, exported).labels for metric in metrics))


def told(metric: str, exported: dict[str, Told]) -> Told:
    """Return what is exported as *metric*, which may be a sample of a histogram."""
    if metric == "up":  # Prometheus' own
        return Told("gauge", frozenset())
    for end in HISTOGRAM_SAMPLES:
        whole = exported.get(metric.removesuffix(end))
        if metric.endswith(end) and whole is not None and whole.kind == "histogram":
            return whole
    assert metric in exported, f"{metric} is not exported"
    assert exported[metric].kind != "histogram", f"{metric} can't be asked for as a whole"
    return exported[metric]
