"""`fedzo plot`: the numbers drawn are those of the metrics, whatever a kill has left of them."""

import json
import shutil
import struct
import sys
from pathlib import Path

import pytest
from commands import fedzo, refused

from fedzo.errors import ConfigError
from fedzo.results.plot import DOTS_PER_INCH, HEIGHT_INCHES, WIDTH_INCHES, draw, plot_runs, read_curves
from fedzo.run_directory import RunDirectory

MEASURED = ("seconds", "forwards", "bytes_up", "bytes_down")


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def copied(run: Path, out: Path, lines: list[dict], rest: str = "") -> RunDirectory:
    """A copy of a run with other metrics."""
    shutil.copytree(run, out)
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
    return RunDirectory(out)


def png_size(content: bytes) -> tuple[int, int]:
    """Width and height that a PNG's first chunk states."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")
    assert content.endswith(b"IEND\xae\x42\x60\x82")
    return struct.unpack_from(">II", content, 16)


def test_the_points_are_those_of_the_metrics(finished):
    curves = read_curves(RunDirectory(finished), "a")
    lines = metrics_of(finished)
    held_out = [line for line in lines if line["kind"] == "evaluation"]
    commits = [line for line in lines if line["kind"] == "commit"]
    assert len(held_out) == 4
    assert len(commits) == 12
    for points, chosen, loss in ((curves.held_out, held_out, "held_out_loss"), (curves.training, commits, "loss")):
        assert points["round"] == [(line["round"], line[loss]) for line in chosen]
        assert points["forwards"] == [(line["forwards"], line[loss]) for line in chosen]
        assert points["bytes"] == [(line["bytes_up"] + line["bytes_down"], line[loss]) for line in chosen]


def test_lines_without_measured_figures_are_drawn_against_rounds_only(finished, tmp_path):
    lines = metrics_of(finished)
    mended = [{name: line[name] for name in line if name not in MEASURED} for line in lines[:6]]
    whole = read_curves(RunDirectory(finished), "whole")
    curves = read_curves(copied(finished, tmp_path / "run", mended + lines[6:]), "mended")
    assert curves.held_out["round"] == whole.held_out["round"]
    assert curves.training["round"] == whole.training["round"]
    lost = sum(line["kind"] == "commit" for line in lines[:6])
    assert lost > 0
    assert curves.training["bytes"] == whole.training["bytes"][lost:]
    without = copied(finished, tmp_path / "none", mended)
    assert png_size(draw([read_curves(without, "none")]))


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_named(finished, tmp_path):
    lines = metrics_of(finished)
    torn = copied(finished, tmp_path / "torn", lines[:-3], rest='{"position": 12, "los')
    expected = copied(finished, tmp_path / "expected", lines[:-3])
    assert read_curves(torn, "") == read_curves(expected, "")
    damaged = copied(finished, tmp_path / "damaged", lines)
    text = damaged.metrics.read_text().split("\n")
    damaged.metrics.write_text("\n".join([*text[:4], text[4][:20], *text[5:]]))
    with pytest.raises(ConfigError, match=f"line 5 of {len(lines)} is not that of record 5"):
        read_curves(damaged, "")


def test_losses_that_are_not_finite_are_left_out(finished, tmp_path):
    lines = metrics_of(finished)
    first = next(k for k, line in enumerate(lines) if line["kind"] == "evaluation")
    commit = next(k for k, line in enumerate(lines) if line["kind"] == "commit")
    lines[first]["held_out_loss"] = None
    lines[commit]["loss"] = float("nan")
    curves, whole = (read_curves(run, "") for run in (copied(finished, tmp_path / "r", lines), RunDirectory(finished)))
    for axis in ("round", "forwards", "bytes"):
        assert curves.held_out[axis] == whole.held_out[axis][1:]
        assert curves.training[axis] == whole.training[axis][1:]


def test_two_runs_make_a_png_of_the_stated_size(finished, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(finished, second)
    fedzo("plot", finished, second, "--out", tmp_path / "runs.png")
    assert png_size((tmp_path / "runs.png").read_bytes()) == (
        WIDTH_INCHES * DOTS_PER_INCH,
        HEIGHT_INCHES * DOTS_PER_INCH,
    )


def test_the_legend_names_each_run_once(finished, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    other = tmp_path / finished.name
    shutil.copytree(finished, other)
    training_only = copied(
        finished, tmp_path / "unheld", [line | {"held_out_loss": None} for line in metrics_of(finished)]
    )
    plot_runs([finished, training_only.path], tmp_path / "a.png")
    plot_runs([finished, other], tmp_path / "b.png")
    legends = [[text.get_text() for text in figure.axes[0].get_legend().get_texts()] for figure in drawn]
    assert legends == [[finished.name, "unheld"], [str(finished), str(other)]]
    assert [axes.get_xlabel() for axes in drawn[0].axes] == ["round", "forward passes", "bytes up and down"]
    line = drawn[0].axes[2].get_lines()[1]
    assert list(zip(*line.get_data(), strict=True)) == read_curves(RunDirectory(finished), "").held_out["bytes"]


def test_without_matplotlib_the_extra_is_named(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install -c constraints.txt '.[plot]'" in refused("plot", finished, "--out", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_bad_input_is_refused_by_name(finished, tmp_path):
    out = tmp_path / "a.png"
    assert "no run there" in refused("plot", finished, tmp_path, "--out", out)
    assert "ends with .png" in refused("plot", finished, "--out", tmp_path / "a.pdf")
    assert "is not a directory" in refused("plot", finished, "--out", tmp_path / "nowhere" / "a.png")
    empty = copied(finished, tmp_path / "empty", [])
    assert "no loss to plot" in refused("plot", empty.path, "--out", out)
    empty.metrics.unlink()
    assert "no loss to plot" in refused("plot", empty.path, "--out", out)
    assert not out.exists()
    out.write_text("mine")
    assert "exists already" in refused("plot", finished, "--out", out)
    assert out.read_text() == "mine"
