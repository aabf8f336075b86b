"""Write the tables of docs/operations.md from the code: settings, metrics, commands' help is theirs to print.

python docs/generate.py          rewrite the tables
python docs/generate.py --check  exit 1 if a table is not what the code says
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from worker.metrics import all_series
from worker.settings import PREFIX, Settings

PAGE = Path(__file__).with_name("operations.md")


def settings_table() -> str:
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        shown = "made of host, process and chance" if default is PydanticUndefined else "" if default is None else f"`{default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def metrics_table() -> str:
    rows = ["| series | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for series in all_series():
        labels = ", ".join(f"`{label}`" for label in series.labels)
        rows.append(f"| `{series.name}` | {series.kind} | {labels} | {series.meaning} |")
    return "\n".join(rows)


def render(page: str) -> str:
    for name, table in (("settings", settings_table()), ("metrics", metrics_table())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(page):
            raise SystemExit(f"{PAGE} has no place for the table of {name}")
        page = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", page)
    return page


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rendered = render(page)
    if "--check" in sys.argv[1:]:
        if rendered != page:
            raise SystemExit(f"{PAGE} is not what the code says: run `python docs/generate.py`")
    else:
        PAGE.write_text(rendered, encoding="utf-8")


if __name__ == "__main__":
    main()
