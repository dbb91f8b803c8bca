"""Writes unicode_class_table.rs: the classes of all code points, from the general categories of Unicode 15.1 and its White_Space property.

python3 -m venv venv && venv/bin/pip install unicodedata2==15.1.0 && venv/bin/python unicode_class_table.py
"""

import pathlib

import unicodedata2

# PropList.txt of Unicode 15.1: White_Space.
WHITE_SPACE = {*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
CLASSES = {"Lu": "U", "Lt": "U", "Ll": "D", "Lm": "L", "Lo": "L", "M": "M", "N": "N", "P": "P", "S": "S"}
HEAD = '''//! The classes of all code points, as runs: written by `unicode_class_table.py` from the general categories of Unicode 15.1 and
//! its `White_Space` property. It is never edited by hand.

use super::Run::{self, Alternating as A, Of};
use super::UnicodeClass::{
    Lower, Mark, Number, Other, OtherLetter, Punctuation, Symbol, Upper, Whitespace,
};

const U: Run = Of(Upper);
const D: Run = Of(Lower);
const L: Run = Of(OtherLetter);
const M: Run = Of(Mark);
const N: Run = Of(Number);
const W: Run = Of(Whitespace);
const P: Run = Of(Punctuation);
const S: Run = Of(Symbol);
const O: Run = Of(Other);

/// Where each run begins; the run goes on to the next one.
#[rustfmt::skip]
pub(super) static RUNS: [(u32, Run); %d] = [
'''


def class_of(code):
    if code in WHITE_SPACE:
        return "W"
    category = unicodedata2.category(chr(code))
    return CLASSES.get(category) or CLASSES.get(category[0], "O")


def runs():
    classes = [class_of(code) for code in range(0x110000)]
    made = []
    at = 0
    while at < len(classes):
        # Upper and lower case by turns, four code points or more.
        end = at
        while end + 1 < len(classes) and classes[end : end + 2] == ["U", "D"]:
            end += 2
        if end - at >= 4:
            made.append((at, "A"))
            at = end
            continue
        if not made or made[-1][1] != classes[at]:
            made.append((at, classes[at]))
        at += 1
    return made


def main():
    assert unicodedata2.unidata_version == "15.1.0"
    made = runs()
    lines, line = [], "   "
    for start, name in made:
        entry = f" ({start:#x}, {name}),"
        if len(line) + len(entry) > 120:
            lines.append(line)
            line = "   "
        line += entry
    text = HEAD % len(made) + "\n".join([*lines, line]) + "\n];\n"
    pathlib.Path(__file__).with_suffix(".rs").write_text(text)


if __name__ == "__main__":
    main()
