"""What every error of Coterie does."""

import pickle

from coterie.errors import CoterieError, ReadError


def test_what_is_said_of_odd_names_can_be_printed() -> None:
    error = CoterieError("\ud800 is no name.", advice="Not \udcff either.", name="\ud800")
    assert str(error) == "\\ud800 is no name. Not \\udcff either."
    assert error.name == "\ud800"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_pickled_error_keeps_its_class_and_facts() -> None:
    error = pickle.loads(pickle.dumps(ReadError("Gone.", advice="Look.", path="a")))
    assert type(error) is ReadError
    assert (error.message, error.advice, error.path) == ("Gone.", "Look.", "a")
