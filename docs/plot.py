"""Draws docs/peers.svg from docs/peers.toml: `pip install matplotlib`, then `python docs/plot.py`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by those who see fewer colours (Okabe and Ito)
MARKS = ("o", "s", "D")
TICKS = (1, 1.5, 2, 3, 4, 6)


def main() -> None:
    """Draw one panel for each machine, a line for each figure, a mark for each model."""
    data = tomllib.loads((HERE / "peers.toml").read_text())
    mpl.rcParams.update({"svg.hashsalt": "outpace", "font.size": 9, "svg.fonttype": "none"})
    figure, panels = plt.subplots(
        1, len(data["machine"]), figsize=(10.5, 3.3), sharey=True, layout="constrained"
    )
    for panel, machine in zip(panels, data["machine"], strict=True):
        draw(panel, machine, data["figures"])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Times as fast as llama.cpp: plain decoding, no drafts")
    figure.savefig(HERE / "peers.svg", metadata={"Date": None})


def draw(panel: Any, machine: dict[str, Any], figures: list[str]) -> None:
    """One machine's marks."""
    rows = range(len(figures))
    models = [name for name in machine if name != "name"]
    for model, colour, mark in zip(models, COLOURS, MARKS, strict=True):
        panel.scatter(machine[model], rows, c=colour, marker=mark, s=32, label=model, zorder=3)
    panel.axvline(1, color="#555", linewidth=1)
    panel.set_xscale("log")
    panel.set_xlim(0.88, 7.2)
    panel.set_xticks(TICKS, [f"{tick:g}x" for tick in TICKS], minor=False)
    panel.minorticks_off()
    panel.set_yticks(rows, figures)
    panel.set_ylim(len(figures) - 0.5, -0.5)
    panel.grid(axis="y", color="#ddd", linewidth=0.8)
    panel.set_title(machine["name"], fontsize=9)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


if __name__ == "__main__":
    main()
