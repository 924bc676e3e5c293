"""Plots need matplotlib, which is optional: where it is missing, a command says so before it trains anything."""

import sys

import pytest

from sparsemax_nb import data
from sparsemax_nb.cli import main
from sparsemax_nb.train import curves

MESSAGE = "plots need matplotlib; install it with pip install 'sparsemax-nb[plot]'"


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_without_matplotlib_an_error_says_how_to_install_it(no_matplotlib, tmp_path):
    with pytest.raises(ImportError) as caught:
        curves.plot(None, tmp_path / "curves.png")
    assert str(caught.value) == MESSAGE
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["train", "classifier", "--plot", "curves.png"],
        ["train", "language-model", "--plot", "curves.png"],
        ["explain", "model", "old maps", "--plot", "curves.png"],
        ["demo"],
    ],
)
def test_commands_that_plot_check_for_matplotlib_first(command, no_matplotlib, monkeypatch, tmp_path, capsys):
    def load(*_, **__):
        raise AssertionError("data were loaded before matplotlib was looked for")

    for name in "load", "load_text":
        monkeypatch.setattr(data, name, load)
    monkeypatch.chdir(tmp_path)
    assert main.main(command) == 2
    assert capsys.readouterr().err == f"sparsemax-nb: {MESSAGE}\n"
    assert not any(tmp_path.iterdir())
