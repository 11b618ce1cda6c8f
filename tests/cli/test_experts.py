import json

import pytest

from coterie.spec import BankKey
from profiles.conftest import favour, planted, planted_once, write_profile  # noqa: F401 - fixtures
from profiles.synthetic import Router, run_facts


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_ranks_experts(coterie, planted) -> None:  # noqa: F811
    outcome = coterie("experts", "rank", str(planted), "--domain", "code", "--limit", "2")
    assert outcome.code == 0
    table = rows(outcome.out)
    assert table[1][:4] == ["text", "0", "3", "100.0%"]
    assert table[1][-1] == "yes"
    assert len(table) == 4
    assert "1 specialists of code among 16 experts; 1,024 tokens in 8 blocks" in outcome.out
    found = json.loads(
        coterie("experts", "rank", str(planted), "-d", "prose", "-m", "text", "--specialists", "--json").out
    )
    assert {(expert["layer"], expert["expert_id"]) for expert in found["experts"]} == {(1, 5), (1, 6)}
    assert (found["schema_version"], found["domain"], found["modality"]) == (1, "prose", "text")


def test_names_the_nearest_domain(coterie, planted) -> None:  # noqa: F811
    outcome = coterie("experts", "rank", str(planted), "--domain", "prosa")
    assert outcome.code == 2
    assert "Did you mean 'prose'? Valid: 'code', 'law', 'prose'." in outcome.err


def test_says_when_nothing_was_tested(coterie, tmp_path) -> None:
    write_profile(tmp_path / "p", Router(), {"code": 2, "law": 2})
    outcome = coterie("experts", "rank", str(tmp_path / "p"), "--domain", "code")
    assert outcome.code == 0
    assert "Too few segments" in outcome.err


def test_shows_one_expert(coterie, tmp_path) -> None:
    router = Router(layers=2, experts=16, top_k=4, planted={(1, "prose"): (5, 6)})
    write_profile(tmp_path / "p", router, {"prose": 40, "code": 40, "law": 40}, tokens=32)
    outcome = coterie("experts", "show", str(tmp_path / "p"), "1", "5")
    assert outcome.code == 0
    assert "Expert 5 of 16, text layer 1 (mlp), tiny" in outcome.out
    assert "trust 0." in outcome.out
    assert "Chosen together with: 6 (lift" in outcome.out
    found = json.loads(coterie("experts", "show", str(tmp_path / "p"), "1", "5", "--json").out)
    assert (found["expert_id"], found["companions"][0]["expert_id"]) == (5, 6)
    assert found["domains"][0]["name"] == "prose"
    assert coterie("experts", "show", str(tmp_path / "p"), "1", "99").code == 2


def test_tokens_are_shown_as_text_where_a_tokenizer_is_to_be_had(coterie, tmp_path) -> None:
    router = Router(planted={(0, "code"): (3,)})
    write_profile(tmp_path / "p", router, {"code": 40, "law": 40})
    favour(tmp_path / "p", BankKey("text", 0, "mlp"), 3, 345)
    by_id = coterie("experts", "show", str(tmp_path / "p"), "0", "3").out
    assert "Input tokens, by id: 345 (100% of 200)" in by_id
    assert "--tokenizer MODEL" in by_id
    given = coterie("experts", "show", str(tmp_path / "p"), "0", "3", "--tokenizer", "bundled").out
    assert "Input tokens: “" in given
    write_profile(tmp_path / "q", router, {"code": 40, "law": 40}, run=run_facts(tokenizer="bundled"))
    favour(tmp_path / "q", BankKey("text", 0, "mlp"), 3, 345)
    assert "Input tokens: “" in coterie("experts", "show", str(tmp_path / "q"), "0", "3").out
    assert coterie("experts", "show", str(tmp_path / "q"), "0", "3", "--tokenizer", "./nowhere").code == 1


def test_names_the_layers_that_there_are(coterie, planted) -> None:  # noqa: F811
    outcome = coterie("experts", "show", str(planted), "9", "5")
    assert outcome.code == 2
    assert "It has layers 0 to 1 of text." in outcome.err


def test_tells_kinds_apart(coterie, planted) -> None:  # noqa: F811
    outcome = coterie("experts", "kinds", str(planted), "--kind", "specialist")
    assert outcome.code == 0
    assert rows(outcome.out)[0][:3] == ["0", "universal,", "3"]
    assert sorted(row[1:3] for row in rows(outcome.out)[2:]) == [["0", "3"], ["1", "5"], ["1", "6"]]
    assert json.loads(coterie("experts", "kinds", str(planted), "--json").out)["counts"]["specialist"] == 3


def test_compares_domains(coterie, planted) -> None:  # noqa: F811
    outcome = coterie("experts", "compare", str(planted), "code", "prose", "--limit", "3")
    assert outcome.code == 0
    assert {tuple(row[1:3]) for row in rows(outcome.out)[1:4]} == {("0", "3"), ("1", "5"), ("1", "6")}
    assert "Jensen–Shannon divergence" in outcome.out
    found = json.loads(coterie("experts", "compare", str(planted), "code", "prose", "--json").out)
    assert (found["first"], found["second"]) == ("code", "prose")
    assert coterie("experts", "compare", str(planted), "code", "code").code == 2


@pytest.mark.parametrize("options", [(), ("--share", "0.25"), ("--lose", "0.2")])
def test_finds_spare_experts(coterie, planted, options) -> None:  # noqa: F811
    outcome = coterie("experts", "spare", str(planted), "--domain", "prose", *options)
    assert outcome.code == 0
    found = json.loads(coterie("experts", "spare", str(planted), "--domain", "prose", *options, "--json").out)
    # Prose is served by two experts of layer 1 alone, and by all of layer 0.
    assert found["never"] == 6
    expected = {(): 6, ("--share", "0.25"): 4}.get(options)
    assert len(found["experts"]) == expected if expected else len(found["experts"]) > 6
    assert f"{len(found['experts'])} of 16 experts; 6 were never selected in 1,024 tokens" in outcome.out
