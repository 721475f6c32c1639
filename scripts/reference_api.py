"""The public Python API as Markdown, from the sources: nothing is imported, so annotations stand as they are there."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[1]
MADE = "<!-- made by scripts/reference.py: change the docstring instead -->"

# what programs may build on; whatever is not here may change in every release
PUBLIC = {
    "tpm_mtls.identity": ("load_identity", "Identity", "load_record", "IdentityRecord"),
    "tpm_mtls.key_reference": ("parse_key_reference", "PersistentHandle", "KeyFile"),
    "tpm_mtls.authorization": ("Secret", "read_secret"),
    "tpm_mtls.tls": ("client_context", "server_context", "trust_context", "ClientCertificates", "IdentityContext"),
    "tpm_mtls_client": ("connect", "Client", "Response", "Timeout"),
    "tpm_mtls.pyopenssl": ("pyopenssl_context", "verified_connection"),
    "tpm_mtls.secrets": ("Client",),
    "tpm_mtls.trace": ("read_trace", "TracedCommand"),
    "tpm_mtls_simulator": ("Simulator", "SimulatorStatus"),
    "tpm_mtls.errors": (),
}

_INTRODUCTION = """\
Programs may build on what is on this page; whatever is not here may change in every release. All of it is typed (PEP
561), and every error is one of [`tpm_mtls.errors`](#tpm_mtlserrors). A process that makes TLS connections with these
modules never talks to the TPM in another way
([decision 1](../decisions/0001-a-library-context-for-the-provider.md))."""

_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_SECTION = re.compile(rf"^({'|'.join(_SECTIONS)}):\n", re.MULTILINE)
_ITEM = re.compile(r"^ {4}(?P<name>\S[^:\n]*): (?P<text>.*(?:\n {5,}.*)*)", re.MULTILINE)

_DRAWN = re.compile("[├└]")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A module's name and source."""

    name: str
    tree: ast.Module

    def definition(self, name: str) -> Function | ast.ClassDef:
        """The function or class ``name``, in this module or in the one it is imported from."""
        for node in ast.walk(self.tree):
            if isinstance(node, Function | ast.ClassDef) and node.name == name and node in self.tree.body:
                return node
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
                return load_module(node.module or "").definition(name)
        raise LookupError(f"{self.name} has no {name}")


def load_module(name: str) -> Module:
    """The source of the module ``name``."""
    for component in sorted(ROOT.iterdir()):
        path = component / name.replace(".", "/")
        for source in (path.with_suffix(".py"), path / "__init__.py"):
            if source.exists():
                return Module(name, ast.parse(source.read_text()))
    raise LookupError(f"there is no module {name}")


def attributes(module: Module, name: str) -> dict[str, str]:
    """What the class ``name`` of ``module`` says of its attributes."""
    _, _, section = inspect.cleandoc(ast.get_docstring(module.definition(name)) or "").partition("Attributes:\n")
    return {each["name"]: _inline(" ".join(each["text"].split())) for each in _ITEM.finditer(section)}


def api_page() -> str:
    """The page."""
    parts = ["# Python API", MADE, _INTRODUCTION]
    parts.append("\n".join(f"- [`{name}`](#{name.replace('.', '')}): {_summary(name)}" for name in PUBLIC))
    for name, wanted in PUBLIC.items():
        parts += module_text(load_module(name), wanted)
    return "\n\n".join(parts) + "\n"


def _summary(name: str) -> str:
    text = (ast.get_docstring(load_module(name).tree) or "").partition("\n\n")[0]
    return _inline(" ".join(text.split()))


def module_text(module: Module, wanted: Iterable[str]) -> Iterator[str]:
    """The part of the page about ``module``: the names ``wanted`` of it, or all of its error classes."""
    yield f"## {module.name}"
    yield from _text(ast.get_docstring(module.tree) or "")
    for name in wanted:
        node = module.definition(name)
        yield from _class(module, node) if isinstance(node, ast.ClassDef) else _function(node, "###", module.name)
    if not wanted:
        yield from _error_classes(module)


def _error_classes(module: Module) -> Iterator[str]:
    """The tree is in the module's docstring; here is what each of them carries besides."""
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef):
            fields = [each.arg for each in _own_arguments(node)]
            carried = f" Carries {', '.join(f'`{name}`' for name in fields)}." if fields else ""
            said = (ast.get_docstring(node) or "").partition("\n\nAttributes:")[0]
            yield f"**`{node.name}`**: {_inline(' '.join(said.split()))}{carried}"


def _own_arguments(node: ast.ClassDef) -> list[ast.arg]:
    for each in node.body:
        if isinstance(each, Function) and each.name == "__init__":
            return [argument for argument in each.args.kwonlyargs if argument.arg != "hint"]
    return []


def _class(module: Module, node: ast.ClassDef) -> Iterator[str]:
    yield f"### {node.name}"
    yield f"```python\n{_class_signature(module, node)}\n```"
    yield from _text(ast.get_docstring(node) or "")
    for each in node.body:
        if isinstance(each, Function) and not each.name.startswith("_"):
            yield from _function(each, "####", node.name)


def _class_signature(module: Module, node: ast.ClassDef) -> str:
    bases = [ast.unparse(each) for each in node.bases]
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
    initialiser = next((each for each in node.body if isinstance(each, Function) and each.name == "__init__"), None)
    if initialiser is not None:
        return _signature(initialiser, f"class {node.name}", f"from {module.name} import {node.name}")
    head = f"from {module.name} import {node.name}\n\nclass {node.name}" + (f"({', '.join(bases)})" if bases else "")
    if "Enum" in "".join(bases):
        values = [each for each in node.body if isinstance(each, ast.Assign)]
        return "\n".join([f"{head}:", *(f"    {ast.unparse(each)}" for each in values)])
    return "\n".join([f"{head}:" if fields else head, *(f"    {_field(each)}" for each in fields)])


def _field(node: ast.AnnAssign) -> str:
    default = f" = {ast.unparse(node.value)}" if isinstance(node.value, ast.Constant) else ""
    return f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}{default}"


def _function(node: Function, heading: str, owner: str) -> Iterator[str]:
    decorators = {ast.unparse(each) for each in node.decorator_list}
    if any(each.endswith((".setter", "overload")) for each in decorators):
        return
    if "property" in decorators:
        yield f"{heading} {owner}.{node.name}"
        yield f"```python\n{node.name}: {ast.unparse(node.returns) if node.returns else 'object'}\n```"
    else:
        method = heading == "####"
        yield f"{heading} {f'{owner}.' if method else ''}{node.name}"
        first = "" if method else f"from {owner} import {node.name}"
        yield f"```python\n{_signature(node, node.name, first)}\n```"
    yield from _text(ast.get_docstring(node) or "")


def _signature(node: Function, name: str, first: str) -> str:
    """How it is called, one argument a line where one line is too short."""
    arguments = _arguments(node.args)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) > 100:  # noqa: PLR2004 - characters in a line
        line = "\n".join([f"{name}(", *(f"    {each}," for each in arguments), f"){returns}"])
    return f"{first}\n\n{line}" if first else line


def _arguments(arguments: ast.arguments) -> list[str]:
    plain = [*arguments.posonlyargs, *arguments.args]
    missing = len(plain) - len(arguments.defaults)
    shown = [
        _argument(each, arguments.defaults[number - missing] if number >= missing else None)
        for number, each in enumerate(plain)
        if each.arg not in {"self", "cls"}
    ]
    if arguments.vararg:
        shown.append(f"*{_argument(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += [_argument(*each) for each in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [*shown, *([f"**{_argument(arguments.kwarg, None)}"] if arguments.kwarg else [])]


def _argument(node: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {ast.unparse(node.annotation)}" if node.annotation else ""
    equals = " = " if annotation else "="
    return node.arg + annotation + (f"{equals}{ast.unparse(default)}" if default else "")


def _text(docstring: str) -> Iterator[str]:
    """A docstring (Google's style) as Markdown."""
    before, *sections = _SECTION.split(inspect.cleandoc(docstring))
    for is_code, text in passages(before):
        yield f"```{'text' if _DRAWN.search(text) else 'python'}\n{text}\n```" if is_code else _inline(text)
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        items = [f"- `{each['name']}`: {_inline(' '.join(each['text'].split()))}" for each in _ITEM.finditer(body)]
        yield f"*{title}:*\n\n" + ("\n".join(items) or _inline(" ".join(body.split())))


def passages(text: str) -> Iterator[tuple[bool, str]]:
    """The paragraphs of ``text``, each with whether it is code (indented); code that follows code is one of them."""
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]
    for is_code, group in itertools.groupby(paragraphs, lambda part: part.startswith(" ")):
        if is_code:
            yield True, textwrap.dedent("\n\n".join(group))
        else:
            yield from ((False, part) for part in group)


def _inline(text: str) -> str:
    """RST's literals, and names in single backticks, as Markdown's code."""
    return re.sub(r"``([^`]+)``", r"`\1`", text)
