"""How often a text that a model reads out is heard as that text.

A text is given to the talker as the thinker's answer, and the thinker is not asked. Whether the talker then says it
depends on what it has learned to speak after. A model that speaks the words which the bundled model hears is given each
of them. It speaks greedily, and the bundled model writes down what it hears. What the user says before is varied: the
first form is the server's.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.options import options
from harness.report import Report

if TYPE_CHECKING:
    from coterie.generation.opened import OpenModel

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "yes", "no", "up", "down", "left", "right", "go", "stop", "red", "green", "blue", "yellow",
    "cat", "dog", "bird", "fish", "horse", "black", "white",
)  # fmt: skip
"""The spoken words that the bundled model knows (``scripts/talker/words.py``)."""

FORMS = ("Read this aloud: {text}", "{text}", "")
LONGEST_S = 3.0


def heard_of(model: Any, ears: OpenModel, form: str, word: str, file: Path) -> str:
    """What the bundled model hears of a word that is read out.

    Args:
        model: The model that speaks.
        ears: The bundled model.
        form: What the user says, with the word in the place of ``{text}``.
        word: The word.
        file: Where the sound goes.
    """
    import coterie
    from coterie.evaluate.spoken import heard
    from coterie.generation.speaking import Speaking
    from coterie.generation.wav_writer import wav_file

    processors = coterie.processors(model)
    said = processors.tokenizer(word, add_special_tokens=False)["input_ids"]
    inputs = coterie.chat_inputs(processors, [{"role": "user", "content": form.format(text=word)}])
    voice = coterie.Voice(greedy=True, max_seconds=LONGEST_S)
    speech = Speaking(model, processors.tokenizer, inputs, voice=voice, said=said).result()
    with wav_file(file, Speaking.rate) as writer:
        writer.write(speech.samples)
    return heard(ears, file)


def main() -> int:
    """Runs it; returns the exit status."""
    parser = options(__doc__)
    parser.add_argument("--model", default="bundled-omni", help="who speaks (%(default)s)")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    import coterie
    from coterie.engine.quiet import quiet_libraries
    from coterie.generation.opened import OpenModel

    words = WORDS[: 6 if given.quick else None]
    report = Report("reading_aloud", "Texts that are read out", work=Path(tempfile.gettempdir()), quick=given.quick)
    table = report.table(
        f"Words that {Path(given.model).name} reads out, and the bundled model hears rightly.",
        ("what the user says", "heard rightly", "heard as something else"),
    )
    with (
        quiet_libraries(show_downloads=False),
        tempfile.TemporaryDirectory() as folder,
        coterie.load(given.model, expert_memory="100%") as model,
        coterie.load("bundled", expert_memory="100%") as ears,
    ):
        listener = OpenModel.of(ears)
        for form in FORMS:
            found = {word: heard_of(model, listener, form, word, Path(folder) / "said.wav") for word in words}
            wrong = [f"{word}: {other or 'nothing'}" for word, other in found.items() if other != word]
            right = len(words) - len(wrong)
            name = f"`{form.format(text='WORD')}`" if form else "nothing"
            table.rows.append((name, f"{right} of {len(words)}", ", ".join(wrong)))
            report.values[form] = right
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
