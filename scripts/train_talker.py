"""Trains the talker and the vocoder of `bundled-omni`, and puts them into the package: `make talker`.

    python scripts/train_talker.py [--work build/talker]

The bundled model hears 32 words; what is trained here says them. espeak-ng speaks every word in the two voices of
scripts/talker/words.py (the voices that the talker learns), and in others (which the thinker hears meanwhile). The
thinker stays as it is. Everything is seeded. It may be stopped at any time, and goes on where it was. To begin anew,
remove the folder.

At its end it says how many words come back: a word in a voice that no part was trained with is heard, said, and
what was said is heard again. It writes these questions to tests/data/words, for the test that counts them, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile
import torch
from transformers import Qwen3OmniMoeConfig
from transformers.utils import logging

from talker.assembly import write_package
from talker.codes import quantised
from talker.configuration import ENTRIES, GROUPS, TARGET, whole_config
from talker.ears import Ears
from talker.scores import scores
from talker.synthesis import RATE, need_espeak, spoken
from talker.talking import Thoughts, trained_talker
from talker.training import spent_s
from talker.vocoder import Recording, trained_vocoder
from talker.words import ASKING, HELD_OUT, VOICES, WORDS

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ROOT / "tests" / "data" / "words"
SEED = 0


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "talker", help="where the state is kept")
    folder: Path = parser.parse_args().work
    need_espeak()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the same sums on every machine of a kind
    logging.disable_progress_bar()
    config = whole_config()
    classes = Qwen3OmniMoeConfig.from_dict(config)
    recordings = recorded()
    with Ears() as ears:
        vocoder = trained_vocoder(classes, recordings, folder / "vocoder.pt")
        talker = trained_talker(classes, recordings, thoughts(ears), folder / "talker.pt")
        nbytes = write_package(TARGET, config, talker, vocoder)
        times = {name: spent_s(folder / f"{name}.pt") / 60 for name in ("vocoder", "talker")}
        print(f"{TARGET}: {nbytes / 1e6:.2f} MB of weights; "
              + ", ".join(f"{name} {minutes:.1f} minutes of CPU" for name, minutes in times.items()))  # fmt: skip
        for name, score in scores(questions(), ears).items():
            print(f"{name}: {score}")


def recorded() -> list[Recording]:
    """Every word in every voice of the model."""
    said = [(word, name, spoken(word, voice)) for name, voice in VOICES.items() for word in WORDS]
    codes = quantised([samples for _, _, samples in said], groups=GROUPS, entries=ENTRIES, seed=SEED)
    return [
        Recording(word=word, voice=voice, samples=samples, codes=of)
        for (word, voice, samples), of in zip(said, codes, strict=True)
    ]


def thoughts(ears: Ears) -> Thoughts:
    """What the thinker makes of every word."""
    return Thoughts(
        embedding=ears.embedding(),
        tokens={word: ears.token_ids(word) for word in WORDS},
        heard={word: [ears.hidden(spoken(word, voice)) for voice in ASKING] for word in WORDS},
    )


def questions() -> dict[str, Path]:
    """Every word in the voice that no part was trained with, as files."""
    QUESTIONS.mkdir(exist_ok=True)
    files = {word: QUESTIONS / f"{word}.flac" for word in WORDS}
    for word, file in files.items():
        soundfile.write(file, spoken(word, HELD_OUT), RATE, subtype="PCM_16")
    return files


if __name__ == "__main__":
    main()
