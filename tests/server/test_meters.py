"""What Prometheus is told."""

from prometheus_client.parser import text_string_to_metric_families

from server.conftest import Served, chat


def figures(server: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(server.get("/metrics").body.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_was_done_is_counted_under_the_field_s_names(server: Served) -> None:
    before = figures(server)
    assert server.post("/v1/chat/completions", chat()).status == 200
    assert server.post("/v1/chat/completions", chat(n=0)).status == 400
    assert server.get("/some/where/else").status == 404
    after = figures(server)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0.0)

    assert grown("coterie_request_success_total", finished_reason="length") == 1
    assert grown("coterie_prompt_tokens_total") == 5
    assert grown("coterie_generation_tokens_total") == 6
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds", "e2e_request_latency_seconds",
                 "request_queue_time_seconds"):  # fmt: skip
        assert grown(f"coterie_{name}_count") == 1
    assert grown("coterie_http_responses_total", path="/v1/chat/completions", status="400") == 1
    # What clients call is no label: there would be as many as they like.
    assert grown("coterie_http_responses_total", path="other", status="404") == 1
    assert not any("else" in str(key) for key in after)
    assert grown("coterie_experts_requested_total") > 0


def test_what_is_so_now_is_shown(server: Served) -> None:
    found = figures(server)
    stats = server.engine.opened.runtime.stats()
    assert found["coterie_num_requests_running", ()] == 0
    assert found["coterie_num_requests_waiting", ()] == 0
    assert 0 <= found["coterie_expert_hit_rate", ()] <= 1
    assert found["coterie_expert_cache_capacity_bytes", ()] == stats.capacity
    assert found["coterie_experts_bytes", ()] == stats.total_expert_bytes
