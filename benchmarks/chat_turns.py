"""How long a conversation waits for the first token of an answer, turn by turn.

A turn computes its own tokens, and attends to those before it. So the wait should depend on what is new: turn 10 of a
conversation beside the first turn of another one that says as much. Without reuse it grows with the conversation.

    python benchmarks/chat_turns.py STORE --memory 8GiB
"""

from __future__ import annotations

import argparse
import platform
import statistics

import torch
import transformers

import coterie
from coterie.generation.completion import complete
from coterie.generation.inputs import token_inputs

WORDS = "The committee met again in the long room by the river, and heard what each of the envoys had to say about it. "


def waits(model: object, words: int, turns: int, answer: int, *, reuse: bool) -> list[tuple[int, int, float]]:
    """Of each turn: tokens of the prompt, those that were reused, seconds until the first new one."""
    talk = coterie.Conversation(
        model, coterie.processors(model), sampling=coterie.Sampling(max_new_tokens=answer, greedy=True), reuse=reuse
    )  # type: ignore[arg-type]
    found = []
    for number in range(turns):
        done = talk.ask(f"{number}. " + WORDS * words)
        found.append((done.prompt_tokens, done.reused_tokens, done.prefill_s))
    return found


def first_wait(model: object, tokens: int) -> float:
    """Seconds until the first new token after a prompt of so many tokens by itself."""
    processors = coterie.processors(model)
    ids = processors.tokenizer(WORDS * (tokens // 8 + 1))["input_ids"][:tokens]
    inputs, sampling = token_inputs(processors, ids), coterie.Sampling(max_new_tokens=1, greedy=True)
    return complete(model, processors.tokenizer, inputs, sampling).prefill_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bundled")
    parser.add_argument("--memory", default=None)
    parser.add_argument("--max-context", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--words", type=int, default=2, help="how often the sentence is said in a turn")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    memory = {"expert_memory": "100%"} if options.memory is None else {"memory": options.memory}
    model = coterie.load(options.model, max_context=options.max_context, **memory)
    print(
        f"{options.model}, {memory}, {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    )
    for reuse in (True, False):
        runs = [waits(model, options.words, options.turns, options.answer, reuse=reuse) for _ in range(options.runs)]
        print(f"\nreuse={reuse}: turn, tokens, reused, seconds to the first new token (median of {options.runs})")
        middle = [statistics.median(run[turn][2] for run in runs) for turn in range(options.turns)]
        for turn, seconds in enumerate(middle):
            tokens, reused, _ = runs[0][turn]
            print(f"{turn + 1:>4} {tokens:>6} {reused:>6} {seconds:8.3f}")
        new = runs[0][-1][0] - runs[0][-1][1]
        alone = statistics.median(first_wait(model, new) for _ in range(options.runs))
        print(
            f"the last turn computed {new} tokens, which as a first turn take {alone:.3f} s: {middle[-1] / alone:.2f} x"
        )
    model.coterie.close()


if __name__ == "__main__":
    main()
