from coterie.server.transcripts import Transcripts


def test_what_was_said_is_known_until_it_expires_and_to_whom_it_was_said() -> None:
    kept = Transcripts()
    kept.keep("anna", "audio_1", "good morning", 100.0)
    assert kept.find("anna", "audio_1", 99.0) == "good morning"
    assert kept.find("anna", "audio_1", 100.0) is None
    assert kept.find("ben", "audio_1", 99.0) is None
    assert kept.find("anna", "audio_2", 99.0) is None


def test_the_oldest_make_room() -> None:
    kept = Transcripts(most=3, most_characters=10)
    for number in range(5):
        kept.keep("", str(number), "ab", 9.0)
    assert [kept.find("", str(number), 0.0) for number in range(5)] == [None, None, "ab", "ab", "ab"]
    kept.keep("", "long", "abcdefgh", 9.0)
    assert [kept.find("", str(number), 0.0) for number in range(2, 5)] == [None, None, "ab"]
    kept.keep("", "longest", "a" * 100, 9.0)
    assert kept.find("", "longest", 0.0) == "a" * 100
    assert kept.find("", "long", 0.0) is None
    kept.keep("", "longest", "b", 9.0)  # said again: it counts once
    kept.keep("", "more", "c" * 9, 9.0)
    assert kept.find("", "longest", 0.0) == "b"
