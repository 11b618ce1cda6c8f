import hashlib
import io
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image

from coterie.analysis import activation_figure, load_figure, picture_format, render
from coterie.analysis.plots.canvas import LINES, WIDTH
from coterie.errors import MissingPackageError, UsageError
from coterie.profiles import Profile
from coterie.spec import optional_package
from profiles.conftest import planted, planted_once  # noqa: F401 - a fixture

DRAW = (
    "import sys, hashlib; from coterie.analysis import activation_figure, load_figure, render\n"
    "from coterie.profiles import Profile\n"
    "profile = Profile.open(sys.argv[1])\n"
    "for make in (activation_figure, load_figure):\n"
    "    for kind in ('png', 'svg'):\n"
    "        print(hashlib.sha256(render(make(profile), kind)).hexdigest())\n"
    "print(sorted({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
)


def test_pictures_are_valid_and_text_stays_text(planted):  # noqa: F811
    figure = load_figure(Profile.open(planted))
    with Image.open(io.BytesIO(render(figure, "png"))) as image:
        image.load()
        assert image.width == pytest.approx(200 * WIDTH, abs=1)
        assert not {"Software", "Creation Time"} & set(image.info)
    root = ElementTree.fromstring(render(figure, "svg"))
    texts = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Gini coefficient", "layer", "experts, the least busy first (%)"} <= texts
    assert "date" not in render(figure, "svg").decode().lower()


def test_the_same_data_gives_the_same_bytes_in_another_process(planted):  # noqa: F811
    command = [sys.executable, "-c", DRAW, str(planted)]
    *elsewhere, loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    profile = Profile.open(planted)
    figures = [make(profile) for make in (activation_figure, load_figure) for _ in range(2)]
    kinds = ("png", "svg") * 2
    here = [hashlib.sha256(render(*pair)).hexdigest() for pair in zip(figures, kinds, strict=True)]
    assert elsewhere == here
    # Neither torch nor pyplot is loaded for pictures of a profile.
    assert loaded == "[]"


def test_settings_of_the_user_change_nothing_and_stay(planted):  # noqa: F811
    profile = Profile.open(planted)
    plain = render(load_figure(profile), "svg")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert render(load_figure(profile), "svg") == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_no_line_is_red_or_green():
    for color, _, _ in LINES:
        red, green, blue = matplotlib.colors.to_rgb(color)
        assert not (green > red + 0.2 and green > blue + 0.2), color
        assert not (red > green + 0.3 and red > blue + 0.3), color


def test_formats_are_told_by_the_name():
    assert picture_format("a/b.PNG") == "png"
    assert picture_format("b.svg") == "svg"
    with pytest.raises(UsageError, match=r"End it with \.png or \.svg"):
        picture_format("b.jpeg")


def test_a_missing_package_says_how_to_install_it(monkeypatch, planted):  # noqa: F811
    profile = Profile.open(planted)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"Drawing needs Matplotlib.*pip install 'matplotlib>=") as seen:
        load_figure(profile)
    assert seen.value.package == "matplotlib"
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingPackageError, match="Clustering router rows needs scikit-learn"):
        optional_package("sklearn.cluster", "Clustering router rows needs", extra="analysis")
