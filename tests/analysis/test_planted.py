"""A model whose router sends each domain to experts of its own, run and recorded: every question finds exactly these.

And a model with a random router, whose domains are the same tokens under several names: nothing is found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from analysis.planted import DOMAINS, EXPERTS, GROUPS, LAYERS, planted_rows, random_rows, routed_checkpoint
from coterie.analysis import Report, examine_routers, html_page, make_report, markdown_page, run_trial
from coterie.profiles import Profile, compare_domains, expert_kinds, rank_experts
from zoo.sizes import TEXT_IDS, VOCABULARY

FIRST_ID = 3
DOCUMENTS, LENGTH = 24, 32
PLANTED = {domain: set(np.flatnonzero(index == GROUPS).tolist()) for index, domain in enumerate(DOMAINS)}

Opener = Callable[..., Any]


def ids_of(domain: int) -> np.ndarray:
    """Every third token is of the domain: no two domains have one in common."""
    return np.arange(FIRST_ID + domain, TEXT_IDS, len(DOMAINS))


def planted_model(directory: Path) -> Path:
    """Embeddings of a domain's tokens lie along the rows of its experts, of all layers; what layers add is little."""
    routers = [planted_rows(layer, noise=0.2) for layer in range(LAYERS)]
    routed_checkpoint(directory, routers)
    rng = np.random.default_rng(7)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    embedding = 0.2 * rng.standard_normal(tensors["model.embed_tokens.weight"].shape)
    for index in range(len(DOMAINS)):
        for rows in routers:
            direction = rows[index == GROUPS].mean(axis=0)
            embedding[ids_of(index)] += direction / np.linalg.norm(direction) * 8
    assert len(embedding) == VOCABULARY
    tensors["model.embed_tokens.weight"] = torch.tensor(embedding, dtype=torch.float32)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor *= 0.01
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def record(model: Any, path: Path, ids: Callable[[int], np.ndarray], seed: int = 0) -> Path:
    """Runs a model over documents of each domain, and records what its experts do."""
    rng = np.random.default_rng(seed)
    with model.coterie.record_profile(path, domain=DOMAINS[0], segment_tokens=LENGTH) as recorder, torch.no_grad():
        for index, domain in enumerate(DOMAINS):
            recorder.domain = domain
            for _ in range(DOCUMENTS):
                model(input_ids=torch.tensor(rng.choice(ids(index), (1, LENGTH))), use_cache=False)
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Report]:
    """A planted model, what was recorded of it, and the report."""
    import coterie

    folder = tmp_path_factory.mktemp("planted")
    directory = planted_model(folder / "model")
    model = coterie.load(directory, expert_memory="100%")
    profile = record(model, folder / "p.db", ids_of)
    text = np.random.default_rng(1).integers(FIRST_ID, TEXT_IDS, 256).tolist()
    trial = run_trial(model, text, component="text")
    model.coterie.close()
    return directory, profile, make_report(directory, profile, trial=trial, draws=19).report


def test_experts_are_ranked_by_the_planted_map(planted):
    profile = Profile.open(planted[1])
    for domain, experts in PLANTED.items():
        ranking = rank_experts(profile, domain=domain, specialists_only=True)
        found = [(expert.layer, expert.expert_id) for expert in ranking.experts]
        assert sorted(found) == sorted((layer, expert) for layer in range(LAYERS) for expert in experts)
        assert ranking.specialists == LAYERS * len(experts)
    kinds = expert_kinds(profile)
    assert kinds.counts["specialist"] == LAYERS * EXPERTS
    assert all(one.domains == (DOMAINS[GROUPS[one.expert_id]],) for one in kinds.experts)


def test_routers_show_the_planted_map(planted):
    found = examine_routers(planted[0], profile=planted[1], draws=19)
    assert all(list(layer.labels) == GROUPS.tolist() for layer in found.layers)
    domains = [one for one in found.agreements if one.grouping == "domain"]
    assert [(one.rand_index, one.replicated, one.agrees) for one in domains] == [(1.0, True, True)] * LAYERS


def test_the_report_says_so(planted):
    report = planted[2]
    domains = report["domains"]
    assert domains.answer.startswith("They are partitioned by domain: mean divergence of two domains")
    apart, special, everywhere = domains.claims
    assert apart.holds
    assert apart.value > 0.9
    assert (special.value, special.holds) == (1.0, True)
    assert (everywhere.value, everywhere.holds) == (0.0, False)
    listed = {row[0]: {place.split(" ")[0] for place in row[3].split(", ")[:20]} for row in domains.tables[1].rows}
    for domain, experts in PLANTED.items():
        wanted = {f"{layer}:{expert}" for layer in range(LAYERS) for expert in experts}
        assert listed[domain] <= wanted
        assert len(listed[domain]) == 20
    router = report["router"]
    assert "router rows form clusters in 4 of 4 layers" in router.answer
    assert "they show the recorded domains in 4 of 4 (adjusted Rand index 1.00 to 1.00)" in router.answer
    assert (
        report["universal"].answer == "None of 96 experts is above chance in all 3 domains in both halves of the data."
    )
    # One modality was recorded, so nothing can be said of any other.
    assert report["modalities"].answer == "The data do not tell: fewer than two modalities have enough segments."
    assert report["cross_modal"].answer.startswith("The data do not tell")


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_nothing_is_found_in_a_random_router(seed: int, open_model: Opener, tmp_path: Path) -> None:
    directory = routed_checkpoint(tmp_path / "model", [random_rows(50 * seed + layer) for layer in range(LAYERS)])
    same = np.arange(FIRST_ID, TEXT_IDS)
    path = record(open_model(directory), tmp_path / "p.db", lambda domain: same, seed)
    profile = Profile.open(path)
    for domain in DOMAINS:
        assert rank_experts(profile, domain=domain).specialists == 0
    assert not any(one.distinguishes for one in compare_domains(profile, *DOMAINS[:2]).experts)
    assert expert_kinds(profile).counts["specialist"] == 0
    routers = examine_routers(directory, profile=path, draws=19, seed=seed)
    assert not any(layer.clustered for layer in routers.layers)
    assert not any(one.agrees for one in routers.agreements)
    report = make_report(directory, path, draws=19).report
    domains = report["domains"]
    assert domains.answer.startswith("Nothing is shown: the divergence of two domains")
    assert not any(claim.holds for claim in domains.claims[:2])
    assert not any(claim.holds for claim in report["router"].claims)
    assert not report["depth"].claims[0].holds


def test_pages_say_the_same_and_are_the_same_again(planted):
    directory, profile, _ = planted
    one, two = (make_report(directory, profile, draws=3) for _ in range(2))
    assert markdown_page(one.report) == markdown_page(two.report)
    assert html_page(one.report, one.pictures) == html_page(two.report, two.pictures)
    assert set(one.pictures) == {"depth", "activation", "load"}
    page, web = markdown_page(one.report), html_page(one.report, one.pictures)
    for answer in one.report.answers:
        assert f"## {answer.question}\n" in page
        assert answer.question in web
        for picture in answer.pictures:
            assert f"({picture.name}.svg)" in page
    assert page.count("| holds in both halves |") == web.count("<td>holds in both halves</td>") > 3
    assert web.count("data:image/svg+xml;base64,") == 3
    assert "http://" not in web
    assert "https://" not in web
