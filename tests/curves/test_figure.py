import json
from pathlib import Path

import pytest

from coterie.curves import curve_figure, read_curve
from coterie.errors import InputError, UsageError
from curves.made import curve_of, point, smallest

POINTS = (
    *(
        point(kld, experts=n, axis="coverage", keep=str(n), by=by, missing=missing)
        for by, missing, kld in (("id", "mask", 0.5), ("id", "drop", 0.6), ("reap", "mask", 0.1))
        for n in (8, 4)
    ),
    point(0.0, axis="coverage", keep="100%"),
    point(0.2, axis="experts_per_token", experts_per_token=1),
    point(0.02, axis="bits", bits=4.6, scheme="int4"),
    point(0.2, axis="bits", bits=2.6, scheme="int2"),
    point(0.01, axis="bits", bits=4.4, store="here/calibrated"),
    point(0.0, axis="drop_cold", read=4 << 20, drop_cold=0.0),
    point(0.1, axis="drop_cold", read=1 << 20, drop_cold=0.1),
)


def test_every_axis_has_a_panel() -> None:
    figure = curve_figure(curve_of(*POINTS, sets=(smallest("a", 8), smallest("b", 12))))
    coverage, k, bits, reads, sets, nothing = figure.axes
    lines = {line.get_label(): line for line in coverage.containers}
    assert list(lines) == ["id, mask", "id, drop", "reap, mask"]
    assert lines["id, drop"].lines[0].get_xdata().tolist() == [25.0, 50.0]
    assert lines["id, drop"].lines[0].get_ydata().tolist() == [0.6, 0.6]
    styles = {name: (line.lines[0].get_color(), line.lines[0].get_linestyle()) for name, line in lines.items()}
    assert len(set(styles.values())) == 3
    assert k.get_xticks().tolist() == [1.0]
    assert [text.get_text() for text in bits.texts] == ["int2", "calibrated", "int4"]
    assert bits.containers[0].lines[0].get_xdata().tolist() == [2.6, 4.6]
    assert [text.get_text() for text in reads.texts] == ["0.1"]
    assert [bar.get_height() for bar in sets.patches] == [50.0, 75.0]
    assert not nothing.get_visible()
    assert [axes.get_yscale() for axes in (coverage, k, bits, reads)] == ["log"] * 4


def test_choices_by_domain_are_told_apart() -> None:
    points = [
        point(0.1, experts=n, axis="coverage", keep=str(n), by=by, missing="mask", domain=domain)
        for by, domain in (("frequency", "code"), ("reap", None), ("frequency", None))
        for n in (8, 4)
    ]
    (coverage,) = curve_figure(curve_of(*points)).axes
    assert len({line.lines[0].get_color() for line in coverage.containers}) == 3


def test_only_what_there_is_is_drawn() -> None:
    assert len(curve_figure(curve_of(POINTS[0])).axes) == 1
    with pytest.raises(UsageError, match="nothing to draw"):
        curve_figure(curve_of(point(0.0, axis="coverage", keep="100%")))


def test_a_curve_is_read(tmp_path: Path) -> None:
    path, curve = tmp_path / "curve.json", curve_of(*POINTS, sets=(smallest("a", 8),))
    path.write_text(json.dumps(curve.to_json()))
    assert read_curve(path) == curve
    for wrong in ("[]", "{}", "{", json.dumps(curve.to_json() | {"points": [1]})):
        path.write_text(wrong)
        with pytest.raises(InputError, match="is no curve"):
            read_curve(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_curve(tmp_path / "nowhere.json")
