"""What a model directory has for making inputs.

``AutoProcessor`` needs torchvision for models that know video, even for a prompt with a picture or a sound. For models
of the Qwen-VL kind the same inputs are built from parts that do not: the tokenizer, the image processor (transformers'
with torchvision where that is installed, the one with Pillow where it is not), the feature extractor, and the rules for
videos. Other models have their own processor.
"""

from __future__ import annotations

import inspect
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import InputError, LoadError
from coterie.files.json_text import read_json_object
from coterie.generation.placeholders import MediaTokens, clips_are_replaced_whole, sound_lengths
from coterie.generation.video_settings import Rule, VideoSettings, video_settings
from coterie.hf.foreign import foreign
from coterie.hf.processor_limits import check_processor_files
from coterie.hf.tokenizer import load_tokenizer, takes_many_callers
from coterie.spec import install_advice
from coterie.store import Store, is_store

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class _QwenMedia:
    """What a model family of the Qwen-VL kind takes besides text."""

    sounds: bool
    token_types: bool
    """The model computes its positions from ``mm_token_type_ids``: 1 where a token is of a picture, 2 of a video."""
    videos: Rule
    """What a video's limits of pixels are of. Clips say the time of each of their frames in the text."""


_LARGE_PIXELS = 1 << 20
"""Pictures with fewer are left to the image processor as they are."""

_QWEN_MEDIA = {
    "qwen3_omni_moe": _QwenMedia(sounds=True, token_types=False, videos="frame"),
    "qwen3_omni_moe_thinker": _QwenMedia(sounds=True, token_types=False, videos="frame"),
    "qwen3_vl_moe": _QwenMedia(sounds=False, token_types=True, videos="clip"),
    "qwen3_5_moe": _QwenMedia(sounds=False, token_types=True, videos="clip"),
    "qwen4_exp": _QwenMedia(sounds=False, token_types=True, videos="clip"),
}

_MOST_WINDOW = 100_000


class Processors:
    """What a model directory has for making inputs; each part is loaded when it is first needed.

    Args:
        path: A store or checkpoint directory.
        embedding_rows: Rows of the model's input embedding; if given, the tokenizer is checked against it.
        store: The store in that directory, where it is open already: its files have to be what they were then.

    Raises:
        LoadError: If the directory has no readable ``config.json`` or tokenizer, or the tokenizer is another model's
            (a token without a row in the embedding, or placeholder tokens with other ids than the config says).
        StoreError: If it is a store that cannot be opened.
        ReadError: If one of the store's files is not what it was when the store was opened.

    Attributes:
        path: The directory.
        config: ``config.json``, of the thinker where the model has one.
        tokenizer: The tokenizer.
        tokenizing: Held while the tokenizer makes tokens of a text. Those written in Rust take any number of callers at
            once; others take one.
    """

    def __init__(self, path: str | Path, *, embedding_rows: int | None = None, store: Store | None = None) -> None:
        self.path = Path(path)
        # Opening a store compares its files with their checksums; afterwards they have to stay what they are.
        self._store = Store.open(self.path) if store is None and is_store(self.path) else store
        self.config = _read_config(self.path)
        self.embedding_rows = embedding_rows
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.path, embedding_rows)
        self.tokenizing: AbstractContextManager[Any] = (
            nullcontext() if takes_many_callers(self.tokenizer) else threading.RLock()
        )
        self._check_files()
        self._qwen = _QWEN_MEDIA.get(str(self.config.get("model_type")))
        for tokens, key in (
            (self.pictures, "image_token_id"),
            (self.sounds, "audio_token_id"),
            (self.videos, "video_token_id"),
        ):
            self._check_token(tokens, key)

    @property
    def pictures(self) -> MediaTokens | None:
        """The tokens around a picture, or None if this is not a model of the Qwen-VL kind."""
        if self._qwen is None:
            return None
        return MediaTokens(
            kind="picture",
            start=self._token("vision_bos_token", "<|vision_start|>"),
            pad=self._token("image_token", "<|image_pad|>"),
            end=self._token("vision_eos_token", "<|vision_end|>"),
        )

    @property
    def sounds(self) -> MediaTokens | None:
        """The tokens around a sound, or None if the model takes none or is not of the Qwen-Omni kind."""
        if self._qwen is None or not self._qwen.sounds:
            return None
        return MediaTokens(
            kind="sound",
            start=self._token("audio_bos_token", "<|audio_start|>"),
            pad=self._token("audio_token", "<|audio_pad|>"),
            end=self._token("audio_eos_token", "<|audio_end|>"),
        )

    @property
    def videos(self) -> MediaTokens | None:
        """The tokens around a video, or None if this is not a model of the Qwen-VL kind that takes any."""
        if self._qwen is None or self.config.get("video_token_id") is None:
            return None
        return MediaTokens(
            kind="video",
            start=self._token("vision_bos_token", "<|vision_start|>"),
            pad=self._token("video_token", "<|video_pad|>"),
            end=self._token("vision_eos_token", "<|vision_end|>"),
            replaced_whole=self._qwen.videos == "clip" and clips_are_replaced_whole(),
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the model takes besides text, of ``image``, ``audio`` and ``video``, as far as its config says."""
        if self._qwen is not None:
            found = {"image": self.pictures, "audio": self.sounds, "video": self.videos}
            return tuple(kind for kind, tokens in found.items() if tokens is not None)
        sees = self.config.get("vision_config") is not None
        hears = any(self.config.get(f"{name}_config") is not None for name in ("audio", "sound"))
        frames = sees and self.config.get("video_token_id") is not None
        return tuple(kind for kind, there in (("image", sees), ("audio", hears), ("video", frames)) if there)

    @property
    def picture_token(self) -> int | None:
        """The token that a prompt has for each feature vector of a picture; None if the model takes no pictures."""
        return self._placeholder(self.pictures, "image")

    @property
    def sound_token(self) -> int | None:
        """The same of sounds."""
        return self._placeholder(self.sounds, "audio")

    @property
    def video_token(self) -> int | None:
        """The same of videos."""
        return self._placeholder(self.videos, "video")

    @property
    def needs_token_types(self) -> bool:
        """True if the model's positions need ``mm_token_type_ids``."""
        return self._qwen is not None and self._qwen.token_types

    @property
    def n_window(self) -> int:
        """Half the mel frames of one chunk of the audio encoder."""
        audio = self.config.get("audio_config")
        value = audio.get("n_window", 50) if isinstance(audio, dict) else 50
        if not isinstance(value, int) or not 0 < value <= _MOST_WINDOW:
            file = self.path / "config.json"
            raise LoadError(f"n_window in {file} must be from 1 to {_MOST_WINDOW}, not {value!r}.", path=file)
        return value

    @property
    def with_torchvision(self) -> bool:
        """Whether pictures are scaled by torchvision, as transformers does where it is installed, or by Pillow."""
        from transformers.utils import is_torchvision_available

        return bool(is_torchvision_available())

    @cached_property
    def image_processor(self) -> Any:
        """The image processor of the Qwen-VL kind: the one that transformers takes.

        Raises:
            LoadError: If the directory has none that can be loaded.
        """
        # By name: AutoImageProcessor asks for torchvision in older releases, whichever backend is wanted.
        if self.with_torchvision:
            from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

            return self._load(Qwen2VLImageProcessor, "image processor")
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        return self._load(Qwen2VLImageProcessorPil, "image processor")

    @cached_property
    def video_settings(self) -> VideoSettings:
        """What the video processor of the Qwen-VL kind does.

        Raises:
            LoadError: If the directory has no settings of one, or others than released models have.
        """
        assert self._qwen is not None
        check_processor_files(self.path)
        made = video_settings(self.path, self._qwen.videos, omni=self._qwen.sounds)
        self._check_files()
        return made

    def scaled(self, picture: Image.Image) -> Image.Image:
        """A large picture in the size that the image processor gives it, with the same pixels as it would have.

        The processor would make two copies of it first. With torchvision it scales in another way: it is left to it.
        """
        if self.with_torchvision:
            return picture
        if picture.width * picture.height < _LARGE_PIXELS or not self.image_processor.do_resize:
            return picture
        return scaled_ahead(self.image_processor, picture)

    @cached_property
    def feature_extractor(self) -> Any:
        """The feature extractor of sounds.

        Raises:
            LoadError: If the directory has none that can be loaded.
        """
        from transformers import AutoFeatureExtractor

        return self._load(AutoFeatureExtractor, "feature extractor")

    @cached_property
    def full(self) -> Any | None:
        """The model's own processor, or None where the inputs are built from parts.

        Raises:
            InputError: If the model's own processor needs torchvision, and that is missing.
            LoadError: If the directory has no processor that can be loaded.
        """
        from transformers import AutoProcessor

        if self._qwen is not None:
            return None
        try:
            return self._load(AutoProcessor, "processor")
        except LoadError as error:
            if isinstance(error.__cause__, ImportError) and not self.with_torchvision:
                raise InputError(
                    f"Pictures, sounds and videos for a {self.config.get('model_type')} model need its own processor, "
                    f"and that needs torchvision.",
                    advice=install_advice("torchvision"),
                    path=self.path,
                ) from error
            raise

    @property
    def positions(self) -> int | None:
        """Tokens that the model has positions for; None if the config has no limit."""
        text = self.config.get("text_config")
        positions = (text if isinstance(text, dict) else self.config).get("max_position_embeddings")
        return positions if isinstance(positions, int) else None

    def max_seconds(self, extractor: Any | None = None) -> float | None:
        """Length in seconds of the longest sound that the model takes whole; None if nothing limits it.

        It has to fit the model's positions, as far as its tokens are known, and what its feature extractor cuts.

        Args:
            extractor: The feature extractor, if it is not that of the Qwen-VL kind.
        """
        extractor = self.feature_extractor if extractor is None else extractor
        if self._qwen is None:
            return _whole_seconds(extractor)
        positions = self.positions
        if positions is None:
            return None
        import torch

        minute = 60 * extractor.sampling_rate // extractor.hop_length
        return 60.0 * positions / sound_lengths(torch.tensor([minute]), self.n_window)[0]

    def _load(self, auto_class: Any, what: str) -> Any:
        check_processor_files(self.path)
        with foreign(f"The {what}", self.path):
            made = auto_class.from_pretrained(str(self.path), trust_remote_code=False, local_files_only=True)
        self._check_files()
        return made

    def _check_files(self) -> None:
        if self._store is not None:
            self._store.check_unchanged()

    def _token(self, attribute: str, default: str) -> str:
        token = getattr(self.tokenizer, attribute, None)
        return token if isinstance(token, str) else default

    def _placeholder(self, tokens: MediaTokens | None, kind: str) -> int | None:
        if tokens is not None:
            return int(self.tokenizer.convert_tokens_to_ids(tokens.pad))
        said = self.config.get(f"{kind}_token_id", self.config.get(f"{kind}_token_index"))
        return said if isinstance(said, int) else None

    def _check_token(self, tokens: MediaTokens | None, key: str) -> None:
        """A foreign tokenizer may fit the embedding and still put the placeholders elsewhere."""
        expected = self.config.get(key)
        if tokens is None or expected is None:
            return
        got = self.tokenizer.get_vocab().get(tokens.pad)
        if got != expected:
            raise LoadError(
                f"The tokenizer in {self.path} does not fit the model: {tokens.pad!r} has id {got}, "
                f"but {key} in config.json is {expected}.",
                advice="Use the tokenizer that came with this checkpoint.",
                path=self.path,
                expected=expected,
                got=got,
            )


def _whole_seconds(extractor: Any) -> float | None:
    """Length of the longest sound that a feature extractor does not cut, unless it is told to."""
    known = inspect.signature(type(extractor).__call__).parameters
    cuts, longest = (known[name].default if name in known else None for name in ("truncation", "max_length"))
    return longest / extractor.sampling_rate if cuts is True and isinstance(longest, int) else None


def scaled_ahead(image_processor: Any, picture: Image.Image) -> Image.Image:
    """A picture as an image processor of the Qwen-VL kind scales it, which then leaves it as it is."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(
        picture.height,
        picture.width,
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )
    return picture.resize((width, height), resample=image_processor.resample)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = read_json_object(file, error=LoadError, advice="Is this a model directory?")
    except FileNotFoundError as error:
        raise LoadError(f"There is no {file}.", advice="Is this a model directory?", path=file) from error
    thinker = config.get("thinker_config")
    return config | thinker | {"model_type": config.get("model_type")} if isinstance(thinker, dict) else config
