"""What was seen is kept: looked at once, taken up where it stopped, and never trusted when it is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from observing import Given, graph, normal

from polycast.calibrating import kept
from polycast.calibrating.observe import observe
from polycast.calibrating.taps import Seen, Tap, Want
from polycast.data.feeds import Sample
from polycast.passbase import PassContext

BODY = "g (float[n, 8] x) => (float[n, 4] y) { h = MatMul(x, w) y = Relu(h) }"
TAPS = [
    Tap("x", Want.HISTOGRAM | Want.CHANNELS | Want.ROWS),
    Tap("h", Want.HISTOGRAM | Want.GRAM),
    Tap("y", Want.GRAM | Want.ROWS),
]
COUNT = 12


@dataclass
class Known(Given):
    """Samples with a digest of their own, so that only looking at them takes them; one of them may stop the run."""

    digest: str = "known"
    stops_at: int = -1

    def __iter__(self) -> Iterator[Sample]:
        for number, sample in enumerate(super().__iter__()):
            if number == self.stops_at:
                raise KeyboardInterrupt
            yield sample


def model() -> ir.Model:
    return graph(BODY, {"w": normal(8, 4)})


def samples(**options: object) -> Known:
    feeds = [{"x": normal(2 + seed % 3, 8, seed=seed)} for seed in range(COUNT)]
    feeds[5]["x"][0, 0] = np.inf
    return Known(feeds, **options)


def see(folder: Path, data: Given, of: ir.Model | None = None, taps: list[Tap] = TAPS) -> dict[str, Seen]:
    return observe(of or model(), taps, PassContext(calibration=data, cache=folder))


def assert_same(one: dict[str, Seen], other: dict[str, Seen]) -> None:
    """Hold every figure of ``one`` to the bit against ``other``."""
    assert list(one) == list(other)
    for mine, theirs in zip(one.values(), other.values(), strict=True):
        for field in fields(Seen):
            a, b = (getattr(seen, field.name) for seen in (mine, theirs))
            if field.name in ("histogram", "channels") and a is not None:
                parts = vars(a).keys()
                a, b = ([getattr(each, part) for part in parts] for each in (a, b))
                assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)), field.name
            else:
                assert np.array_equal(a, b), field.name


def file_in(folder: Path) -> Path:
    (file,) = (folder / "calibration").glob("*.npz")
    return file


def test_what_was_seen_is_not_looked_at_again(tmp_path: Path) -> None:
    first = see(tmp_path, samples())
    again = samples()
    assert_same(see(tmp_path, again), first)
    assert again.asked == 0


@pytest.mark.parametrize("stop", [1, 6, 11])
def test_an_interrupted_look_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    monkeypatch.setattr(kept, "_INTERVAL", 0.0)
    monkeypatch.setattr(kept, "_SAVING_SHARE", 1e9)
    with pytest.raises(KeyboardInterrupt):
        see(tmp_path, samples(stops_at=stop))
    turns: list[int] = []
    ctx = PassContext(calibration=samples(), cache=tmp_path, progress=lambda stage, done, total: turns.append(done))
    found = observe(model(), TAPS, ctx)
    assert turns == list(range(stop, COUNT + 1))
    assert_same(found, observe(model(), TAPS, PassContext(calibration=samples())))


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "another"])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: str) -> None:
    first = see(tmp_path, samples())
    file = file_in(tmp_path)
    whole = file.read_bytes()
    half = len(whole) // 2
    if damage == "another":
        np.savez(file, turn=np.array(COUNT), other=np.zeros(3))
    else:
        flipped = whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1 :]
        file.write_bytes({"empty": b"", "cut": whole[:half], "flipped": flipped, "text": b"PK?"}[damage])
    again = samples()
    assert_same(see(tmp_path, again), first)
    assert again.asked == 1 + COUNT


def test_a_full_disk_only_costs_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, **arrays: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    found = see(tmp_path, samples())
    assert_same(found, observe(model(), TAPS, PassContext(calibration=samples())))
    assert not list((tmp_path / "calibration").iterdir())


def test_a_cache_that_cannot_be_made_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert see(tmp_path / "file", samples())


@pytest.mark.parametrize("change", ["samples", "digest", "weights", "taps", "axis", "names"])
def test_another_question_is_another_look(tmp_path: Path, change: str) -> None:
    see(tmp_path, samples())
    data, of, taps = samples(), model(), TAPS
    if change == "samples":
        data.feeds.pop()
    elif change == "digest":
        data.digest = "other"
    elif change == "weights":
        of = graph(BODY, {"w": normal(8, 4, seed=1)})
    elif change == "taps":
        taps = TAPS[:2]
    elif change == "axis":
        taps = [replace(tap, axis=0) for tap in TAPS]
    else:  # the same graph, in which "h" and "y" are each other's name
        of = graph(BODY.replace("h", "?").replace("y", "h").replace("?", "y"), {"w": normal(8, 4)})
        of.graph.name = "g"
    see(tmp_path, data, of, taps)
    assert data.asked == 1 + len(data)
    assert len(list((tmp_path / "calibration").glob("*.npz"))) == 2


def test_samples_without_a_digest_are_known_by_their_feeds(tmp_path: Path) -> None:
    first = Given([{"x": normal(2, 8, seed=seed)} for seed in range(4)])
    see(tmp_path, first)
    same = Given([{"x": normal(2, 8, seed=seed)} for seed in range(4)], source="elsewhere")
    see(tmp_path, same)
    assert same.asked == 4  # to hash them, and no more
    other = Given([{"x": normal(2, 8, seed=seed + 1)} for seed in range(4)])
    see(tmp_path, other)
    assert other.asked == 4 + 1 + 4


def test_the_folder_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    see(tmp_path, samples())
    monkeypatch.setattr(kept, "FOLDER_BYTES", int(1.5 * file_in(tmp_path).stat().st_size))
    data = samples(digest="newer")
    see(tmp_path, data)
    again = samples(digest="newer")
    see(tmp_path, again)
    assert again.asked == 0
    assert file_in(tmp_path)
