"""Print what pyproject.toml asks for without its pins, for an environment of the newest versions; bounds stay."""

import tomllib
from pathlib import Path

BOUNDS = {"jupyter-book": "jupyter-book<2"}  # the next generation is another program


def newest(pyproject: Path) -> list[str]:
    """The requirements of the project and of all its extras, each without "=="."""
    project = tomllib.loads(pyproject.read_text(encoding="utf8"))["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = [one.partition("==")[0] for one in asked]
    return [BOUNDS.get(name, name) for name in names]


if __name__ == "__main__":
    print(*newest(Path(__file__).parents[1] / "pyproject.toml"))
