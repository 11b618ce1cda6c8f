import json

import pytest

from coterie.errors import LoadError
from coterie.hf.processor_limits import check_processor_files

TOO_MUCH = [
    ("patch_size", {"patch_size": 10**6}),
    ("shortest_edge", {"size": {"shortest_edge": 10**12, "longest_edge": 10**12}}),
    ("shortest_edge", {"size": {"shortest_edge": 10**5}}),
    ("min_pixels", {"min_pixels": 10**7}),
    ("height", {"size": {"height": 16_000, "width": 16_000}}),
    ("size", {"crop_size": {"height": 5}, "size": 10**6}),
    ("feature_size", {"feature_extractor": {"feature_size": 10**6}}),
    ("n_fft", {"n_fft": 10**6}),
    ("n_fft", {"n_fft": 65_536, "feature_size": 4096}),
    ("hop_length", {"sampling_rate": 16_000, "hop_length": 1}),
    ("merge_size", {"merge_size": "2"}),
    ("hop_length", {"hop_length": 0}),
]


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(("key", "values"), TOO_MUCH)
def test_more_than_any_model_needs_is_refused(tmp_path, name, key, values) -> None:
    (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(LoadError, match=name) as refused:
        check_processor_files(tmp_path)
    assert refused.value.key == key


def test_released_files_pass(tmp_path, bundled_files) -> None:
    for name, data in bundled_files.items():
        (tmp_path / name).write_bytes(data)
    large = {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}, "patch_size": 16, "merge_size": 2}
    sound = {"feature_size": 128, "n_fft": 400, "hop_length": 160, "chunk_length": 300, "sampling_rate": 16_000,
             "n_samples": 4_800_000, "nb_max_frames": 30_000, "dither": 0.0}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(large | sound))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"patch_size": {"height": 14, "width": 14}}))
    check_processor_files(tmp_path)


@pytest.fixture
def bundled_files():
    from pathlib import Path

    import coterie

    folder = Path(coterie.__file__).parent / "bundled"
    return {file.name: file.read_bytes() for file in folder.glob("*processor_config.json")}
