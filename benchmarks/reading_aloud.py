"""How often a text that a model reads out is heard as that text.

A text is given to the talker as the answer of the thinker, which is not asked. Whether the talker then says it depends on
what it has learned to speak after. The bundled omni model speaks some words, and the bundled model hears them: each is
given, spoken greedily, and heard. Of what the user says before, several forms are compared, the server's among them.

    python benchmarks/reading_aloud.py [--model bundled-omni]
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

from harness.report import Report

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve yes no up down left right go stop red green "
    "blue yellow black white dog cat bird fish horse"
).split()
"""What the bundled model knows of spoken language."""

FORMS = ("Read this aloud: {text}", "", "{text}", "say {text}")
"""What the user says; the first is what the server has them say."""
