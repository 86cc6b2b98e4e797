"""Writes API.md from the docstrings of the public classes. A test fails if the file differs: run `python reference.py`."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "tickcast"
ORDER = [
    ("Client", ["client.Client", "client.PublishResult"]),
    ("Subscriptions", ["subscription.Subscription", "tick.Tick", "tick.Position"]),
    ("Views", ["keyed_view.KeyedView", "book_view.BookView", "book_view.OrderBook"]),
    (
        "Events",
        [
            *(f"events.{name}" for name in ("Gap", "Conflated", "Recovered", "Stale", "SubscriptionChanged")),
            *(f"events.{name}" for name in ("StateChanged", "Latency", "ErrorEvent", "TokenExpires", "SourceChanged")),
            "events.ClientState",
            "events.SubscriptionState",
        ],
    ),
    ("Positions", ["store.PositionStore", "store.FilePositionStore"]),
    (
        "Errors",
        [
            *(f"errors.{name}" for name in ("TickcastError", "RequestError", "QueueFullError", "RefusedError")),
            *(f"errors.{name}" for name in ("NotPublishedError", "UnacknowledgedError", "PublishTimeoutError")),
            *(f"errors.{name}" for name in ("ClosedError", "ProtocolError")),
        ],
    ),
    ("Without asyncio", ["session.Session", "options.SessionOptions"]),
]
SHOWN = {"__init__", "__aiter__", "__getitem__", "__contains__", "__len__"}


def members(node: ast.ClassDef) -> list[str]:
    """A line for each documented attribute, then one paragraph for each documented method."""
    attributes, methods = [], []
    for at, part in enumerate(node.body):
        following = node.body[at + 1] if at + 1 < len(node.body) else None
        if isinstance(part, (ast.AnnAssign, ast.Assign)):
            target = part.target if isinstance(part, ast.AnnAssign) else part.targets[0]
            name = ast.unparse(target)
            doc = following.value if isinstance(following, ast.Expr) else None
            if not name.startswith("_") and name.isidentifier():
                text = doc.value if isinstance(doc, ast.Constant) and isinstance(doc.value, str) else ""
                attributes.append(f"- `{name}`{': ' + first_lower(text) if text else ''}")
        elif isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc_text = ast.get_docstring(part)
            if doc_text and (not part.name.startswith("_") or part.name in SHOWN):
                methods.append(method(part, doc_text, attributes))
    return [*attributes, "" if attributes else None, *methods]  # type: ignore[list-item]


def first_lower(text: str) -> str:
    """The text in one line, to follow a colon."""
    return " ".join(text.split())


def method(part: ast.FunctionDef | ast.AsyncFunctionDef, doc: str, attributes: list[str]) -> str | None:
    """A method's signature and docstring. A property is an attribute."""
    decorators = {ast.unparse(decorator) for decorator in part.decorator_list}
    if "property" in decorators:
        attributes.append(f"- `{part.name}`: {first_lower(doc)}")
        return None
    arguments = ast.unparse(part.args).removeprefix("self").removeprefix(", ")
    returns = f" -> {ast.unparse(part.returns)}" if part.returns and part.name != "__init__" else ""
    prefix = "async " if isinstance(part, ast.AsyncFunctionDef) else ""
    return f"`{prefix}{part.name}({arguments}){returns}`\n\n{doc}\n"


def render() -> str:
    """The text of API.md."""
    lines = ["# API of tickcast for Python", "", "Written by `reference.py` from the docstrings.", ""]
    for title, names in ORDER:
        lines += [f"## {title}", ""]
        for name in names:
            module, _, class_name = name.partition(".")
            tree = ast.parse((PACKAGE / f"{module}.py").read_text())
            (node,) = [part for part in tree.body if isinstance(part, ast.ClassDef) and part.name == class_name]
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            lines += [f"### {class_name}{f' ({bases})' if bases else ''}", "", ast.get_docstring(node) or "", ""]
            lines += [line for line in members(node) if line is not None]
            lines.append("")
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


if __name__ == "__main__":
    (PACKAGE.parent / "API.md").write_text(render())
