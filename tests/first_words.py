"""Lists the first words of docstrings, and fails if a docstring begins with a word such as What, Whether or How.

python tests/first_words.py           # those that begin with What, Whether, How, …; exit status 1 if there are any
python tests/first_words.py --all     # every first word, the most frequent first
"""

import ast
import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("elrt_keras", "models", "launch", "benchmarks", "examples", "tests", "docs")
RIDDLES = {
    "what",
    "whether",
    "how",
    "who",
    "whom",
    "whose",
    "which",
    "where",
    "when",
    "as",
    "that",
    "those",
    "the same",
}


def docstrings():
    """Yields `(path, line, docstring)` of every module, class and function."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node)
                    if text:
                        yield path.relative_to(ROOT), getattr(node, "lineno", 1), text


def first_word(text):
    """Returns the first word of a docstring in lower case, or its first two words if `RIDDLES` has them."""
    words = re.findall(r"[^\W\d_]+", text.lower())[:2]
    return " ".join(words) if " ".join(words) in RIDDLES else " ".join(words[:1])


def main(arguments):
    """Prints the requested list; returns the exit status."""
    rows = list(docstrings())
    if "--all" in arguments:
        for word, count in collections.Counter(first_word(text) for *_, text in rows).most_common():
            print(f"{count:5} {word}")
        return 0
    riddles = [(path, line, text.splitlines()[0]) for path, line, text in rows if first_word(text) in RIDDLES]
    for path, line, text in riddles:
        print(f"{path}:{line}: {text}")
    print(f"{len(riddles)} of {len(rows)} docstrings begin with a riddle")
    return 1 if riddles else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
