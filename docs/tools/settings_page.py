"""Write docs/settings.md, the reference of all recipe settings, from the settings classes.

python docs/tools/settings_page.py
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from thaw.recipe.reference import SettingInfo, settings_reference

PAGE = Path(__file__).parents[1] / "settings.md"

INTRODUCTION = """\
# Settings

Every key of a recipe, with its default and its meaning. Change a setting with `--set`, or with `overrides` in Python:

    thaw train photos/ --set augment.cutmix=1.0 --set plain.fit.label_smoothing=0.1

```python
thaw.train("photos/", overrides={"augment.cutmix": 1.0, "plain.fit.label_smoothing": 0.1})
```

A key that you do not set keeps the value of the recipe, or else the default below. If you set another `model.family` or
`distil.model.family`, the other keys of that section have the defaults of the family. `recipe.toml` in a run folder
contains every value that was used. [How to choose](choose.md) says which settings to try first.

This page is generated: run `python docs/tools/settings_page.py` after a change to a settings class.
"""


def page() -> str:
    """The whole page, in Markdown."""
    parts = [INTRODUCTION]
    for heading, settings in itertools.groupby(settings_reference(), key=_heading):
        parts.append(f"## {heading}\n\n" + "\n".join(_table(settings)) + "\n")
    return "\n".join(parts)


def _heading(setting: SettingInfo) -> str:
    section, dot, _ = setting.key.partition(".")
    family = f" (family {setting.family})" if setting.family else ""
    return f"{section}{family}" if dot else "Top level"


def _table(settings: Iterator[SettingInfo]) -> Iterator[str]:
    yield "| key | type | range | default | meaning |"
    yield "|---|---|---|---|---|"
    for each in settings:
        default = f"`{each.default}`" if each.default else "required"
        cells = (f"`{each.key}`", each.type, each.range, default, each.description)
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
