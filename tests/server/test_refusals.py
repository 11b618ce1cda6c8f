"""What clients are told of errors."""

from pathlib import Path

import pytest

from coterie import errors
from coterie.server.refusals import Refusal, refusal_of


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InputError("No."), 400, None),
        (errors.UsageError("No."), 400, None),
        (errors.UnsupportedError("No."), 400, "unsupported"),
        (errors.ContextLengthError("No."), 400, "context_length_exceeded"),
        (errors.MemoryBudgetError("No."), 503, "insufficient_memory"),
        (errors.InputError("No.", needed=9, room=5), 503, "insufficient_memory"),
        (MemoryError(), 503, "insufficient_memory"),
        (errors.ReadError("No."), 500, "ReadError"),
        (errors.ExpertMissingError("No."), 500, "ExpertMissingError"),
        (RuntimeError("secret"), 500, None),
        (KeyboardInterrupt(), 500, None),
        (Refusal(418, "No.", code="x"), 418, "x"),
    ],
)
def test_every_error_has_its_status(error: BaseException, status: int, code: str | None) -> None:
    refusal = refusal_of(error)
    assert (refusal.status, refusal.code) == (status, code)
    assert "secret" not in refusal.message
    assert ("Retry-After" in refusal.headers) is (status == 503)
    openai = refusal.body("openai", "req")["error"]
    assert set(openai) == {"message", "type", "param", "code"}
    anthropic = refusal.body("anthropic", "req")
    assert (anthropic["type"], anthropic["request_id"], set(anthropic["error"])) == (
        "error",
        "req",
        {"type", "message"},
    )


def test_places_on_this_machine_are_not_told() -> None:
    path = Path("/home/somebody/models/store/experts.bin")
    assert refusal_of(errors.ReadError(f"{path} is gone.", path=path)).message == "experts.bin is gone."
    assert refusal_of(errors.ReadError(f"{path} is gone.", path=str(path))).message == "experts.bin is gone."
    assert "advice" not in refusal_of(errors.InputError("No.", advice="advice")).message
