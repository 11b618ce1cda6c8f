"""What requests say that they are about."""

import pytest

from coterie.profiles import Profile, ProfileDatabase
from coterie.server.domains import MOST_DOMAINS

from .conftest import PROMPT


def asked(name, **more):
    return {"prompt": PROMPT, "max_tokens": 2, "temperature": 0, "coterie": {"domain": name}} | more


def test_a_recorded_profile_has_the_domains_of_requests(serve, opened, tmp_path) -> None:
    path = tmp_path / "profile.db"
    with opened.runtime.record_profile(path, domain="rest"):
        served = serve(domain="rest")
        assert served.post("/v1/completions", asked("bible")).status == 200
        chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "coterie": {"domain": "talk"}}
        assert served.post("/v1/chat/completions", chat).status == 200
        assert served.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200
    with ProfileDatabase(path) as database:
        assert {group.domain for group in Profile.read(database).groups} == {"bible", "talk", "rest"}


def test_without_a_profile_a_domain_is_refused(server) -> None:
    answer = server.post("/v1/completions", asked("bible"))
    assert answer.status == 400
    assert answer.error["param"] == "coterie.domain"
    assert "--record-profile" in answer.error["message"]


@pytest.mark.parametrize("name", ["", " code", "a\nb", "x" * 65, 3])
def test_names_that_are_none(name, serve) -> None:
    answer = serve(domain="rest").post("/v1/completions", asked(name))
    assert answer.status == 400
    assert answer.error["param"] == "coterie.domain"


def test_clients_cannot_fill_a_profile_with_names(serve) -> None:
    served = serve(domain="rest")
    statuses = [served.post("/v1/completions", asked(f"d{number}")).status for number in range(MOST_DOMAINS + 1)]
    assert statuses == [200] * (MOST_DOMAINS - 1) + [400, 400]
    assert served.post("/v1/completions", asked("d0")).status == 200
