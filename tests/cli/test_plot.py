import numpy as np
import pytest
from PIL import Image

from profiles.conftest import planted, planted_once  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    "options",
    [
        ("activation", "--domain", "code", "--against", "prose"),
        ("modality", "--by", "domain"),
        ("coactivation", "--layer", "1", "--measure", "share"),
        ("load", "--modality", "text"),
    ],
)
def test_draws_profiles(coterie, planted, tmp_path, options):  # noqa: F811
    kind, *rest = options
    outcome = coterie("plot", kind, str(planted), "-o", str(tmp_path / "p.png"), *rest)
    assert outcome.code == 0, outcome.err
    assert f"Wrote {tmp_path / 'p.png'}" in outcome.err
    with Image.open(tmp_path / "p.png") as image:
        image.load()
        assert image.format == "PNG"
    assert coterie("plot", kind, str(planted), "-o", str(tmp_path / "q.png"), *rest).code == 0
    assert (tmp_path / "p.png").read_bytes() == (tmp_path / "q.png").read_bytes()


def test_draws_traces(coterie, tmp_path):
    ids = np.random.default_rng(0).integers(0, 8, (30, 3, 2))
    ids[..., 1] += 8
    np.savez(tmp_path / "t.npz", expert_ids=ids.astype(np.uint16), sequence_lengths=[30], num_experts=16, model="tiny")
    trace, picture = str(tmp_path / "t.npz"), tmp_path / "r.svg"
    assert coterie("plot", "residency", trace, "-o", str(picture), "--capacity", "50%", "--policy", "lru").code == 0
    assert "24 of 48 experts fit, lru" in picture.read_text()
    for wrong, message in ((("--capacity", "3GiB"), "not a share"), (("--policy", "lrv"), "Did you mean 'lru'")):
        outcome = coterie("plot", "residency", trace, "-o", str(picture), *wrong)
        assert outcome.code == 2
        assert message in outcome.err


def test_unknown_names_list_what_there_is(coterie, planted, tmp_path):  # noqa: F811
    out = str(tmp_path / "p.png")
    for arguments, message in (
        (
            ("activations", str(planted), "-o", out),
            "Did you mean 'activation'? Valid: 'activation', 'coactivation', 'curve', 'load'",
        ),
        (("activation", str(planted), "-o", out, "--domain", "prosa"), "Valid: 'code', 'law', 'prose'"),
        (("coactivation", str(planted), "-o", out, "--layer", "9"), "It has layers 0, 1"),
        (("activation", str(planted), "-o", str(tmp_path / "p.gif")), "End it with .png or .svg"),
        (("modality", str(planted), "-o", out), "no two modalities to tell apart"),
        (("load", str(planted), "-o", str(tmp_path / "no" / "p.png")), "no directory"),
    ):
        outcome = coterie("plot", *arguments)
        assert outcome.code == 2, arguments
        assert message in outcome.err
    assert not (tmp_path / "p.png").exists()
