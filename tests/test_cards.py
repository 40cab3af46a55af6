"""The weights that come with pyshuffle: each has a card that is its own."""

import hashlib
import re

import pytest
from conftest import ROOT

from pyshuffle import weights

FOLDER = ROOT / "weights"
FILES = sorted(FOLDER.glob("*.npz"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_card_is_of_its_file(file):
    content, card = file.read_bytes(), file.with_suffix(".md").read_text(encoding="utf-8")
    assert card.startswith(f"# {file.name}\n")
    assert f"| SHA-256 | `{hashlib.sha256(content).hexdigest()}` |" in card
    assert f"| file | float16, {len(content):,} bytes;" in card
    checkpoint = weights.load(file)
    assert f"{checkpoint.net.classes} classes" in card
    assert f"{checkpoint.preprocess.crop} x {checkpoint.preprocess.crop} pixels" in card
    assert len(checkpoint.labels) == checkpoint.net.classes


def test_the_list_says_what_the_cards_say():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(.*?)` \|.*\| ([\d.]+%) \| ([\d.]+%) \| \[card\]\((.*?)\) \|$", page, re.MULTILINE)
    assert sorted(name for name, *_ in listed) == [file.name for file in FILES]
    for name, top1, top5, card in listed:
        assert card == name.replace(".npz", ".md")
        assert f"top-1 {top1}, top-5 {top5}" in (FOLDER / card).read_text(encoding="utf-8")
