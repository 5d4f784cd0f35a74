"""The metrics of several processes in one exposition."""

from prometheus_client.parser import text_string_to_metric_families

from servicekit.metrics import Metrics, merged


def exposition(count: int, *, with_gauge: bool = False) -> bytes:
    metrics = Metrics()
    counter = metrics.counter("pulls", "Pulls.", ["source"])
    counter.labels('a "quoted" {name}').inc(count)
    metrics.histogram("wait_seconds", "Waits.", buckets=(1, 2)).observe(1.5)
    if with_gauge:
        metrics.gauge("open", "Open ones.").set(3)
    return metrics.render()


def test_each_sample_says_whose_it_is_and_families_stay_together() -> None:
    text = merged({"0": exposition(2), "1": exposition(5, with_gauge=True)}, "worker").decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# HELP pulls_total ") == 1
    assert {sample.labels["worker"]: sample.value for sample in families["pulls"].samples} == {"0": 2, "1": 5}
    assert {sample.labels["source"] for sample in families["pulls"].samples} == {'a "quoted" {name}'}
    assert families["pulls"].type == "counter"
    assert families["wait_seconds"].type == "histogram"
    assert len(families["wait_seconds"].samples) == 2 * 5
    assert [sample.labels for sample in families["open"].samples] == [{"worker": "1"}]
