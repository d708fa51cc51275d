"""What one release and the next say to each other, read from the sources: docs/contract.md.

python tests/contract.py            prints it
python tests/contract.py --write    writes it into the page
"""

import argparse
import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from pds_engine import messages
from pds_engine.config import EngineConfig
from pds_engine.kv.transfer.frames import Frame
from pds_engine.messages.base import Message
from pds_engine.router.config import RouterConfig
from pds_engine.server.state import report
from pds_operator import names
from pds_operator.facts import observed
from pds_operator.render import engine
from pds_operator.render.owner import Owner
from pds_operator.run import keys
from pds_operator.schema import parse
from pds_operator.settings import Settings
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "contract.md"
BEGIN, END = "<!-- generated: make gen -->\n```text\n", "```\n<!-- end -->\n"
PACKAGES = ("pds_engine", "pds_kernels", "pds_operator")
SPEC = {
    "image": "i",
    "model": {"name": "m", "source": {"path": "/m"}},
    "engine": {"maxModelLen": 512},
    "prefill": {"replicas": 1},
    "decode": {"replicas": 1},
}


def text() -> str:
    """The whole contract, as lines that a diff shows well."""
    parts = {
        "protocol": [str(messages.PROTOCOL)],
        "messages (tag, then the fields in the order of the wire)": structs(Message),
        "parts of messages": parts_of_messages(),
        "frames of the KV transfer": structs(Frame),
        "/pds/state": list(said_of_nothing()),
        "/pds/backends": keys_of("engine/pds_engine/router/app.py", "described"),
        "headers": literals(r"x-pds-[a-z-]+", "engine/pds_engine"),
        "termination message of a warm-up": [
            field.name for field in dataclasses.fields(observed.Proof)
        ],
        "labels, annotations, gates": sorted(
            value
            for value in vars(names).values()
            if str(value).startswith(f"{names.GROUP}/") and value != names.API_VERSION
        ),
        "names of objects": named(),
        "files of control keys, and of the ring": [*sorted(keys.control_keys()), "<id>.key"],
        "data of a stored revision": stored(),
        "environment of pods": literals(r"PDS_[A-Z_]+", "engine", "kernels", "operator"),
        "configuration of an engine": sorted(settings_of(EngineConfig)),
        "configuration of a router": sorted(settings_of(RouterConfig)),
        "metrics": literals(
            r"pds_[a-z_]+",
            "engine/pds_engine/messages/state.py",
            "engine/pds_engine/metrics.py",
            "engine/pds_engine/server/warmed.py",
            "engine/pds_engine/router/metrics.py",
            "operator/pds_operator/run/handlers.py",
        ),
    }
    return "\n".join(f"{title}\n{_indented(lines)}" for title, lines in parts.items())


def page(text: str) -> str:
    """The page, with `text` for what is generated in it."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}"


def structs(base: type[msgspec.Struct]) -> list[str]:
    return sorted(_struct(kind) for kind in _below(base))


def parts_of_messages() -> list[str]:
    """Structs that messages hold: they have no tag."""
    every = [kind for kind in vars(messages).values() if isinstance(kind, type)]
    plain = [k for k in every if issubclass(k, msgspec.Struct) and not issubclass(k, Message)]
    return sorted(_struct(kind) for kind in plain)


def named() -> list[str]:
    return sorted(
        {
            "<pds>",
            names.ranks_service("<pds>"),
            names.router("<pds>"),
            names.control_secret("<pds>"),
            names.control_secret("<pds>", "<id>"),
            names.keyring("<pds>"),
            names.cache_key("<pds>"),
            names.cache_claim("<pds>"),
            names.seal("<claim>"),
            names.warmup("<pds>", "<revision>"),
            names.warmup("<pds>", "<revision>", "sm_<NN>"),
            names.revision("<pds>", "<revision>"),
            *(names.role_object("<pds>", role) for role in names.ROLES),
            *(
                f"{names.group_name('<pds>', role, 0, 0)}-<rank>".replace("-0-0-", "-<g>-<a>-")
                for role in names.ROLES
            ),
        }
    )


def stored() -> list[str]:
    data = engine.render(SPEC, parse(SPEC), Owner("p", "n", "u"), Settings(), "0123456789")
    return [*data, *(f"roles.<role>.{key}" for key in data["roles"]["decode"])]


def settings_of(kind: type[BaseModel], before: str = "") -> Iterator[str]:
    """The keys of the file that the operator writes and an engine or a router reads."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_of(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def said_of_nothing() -> dict[str, Any]:
    """What an engine answers that has no scheduler yet."""
    return report(
        None,
        EngineConfig(),
        incarnation="",
        key_id=None,
        in_flight=0,
        draining=False,
        error=None,
    )


def keys_of(path: str, function: str) -> list[str]:
    """The keys of the dict that a function returns."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            returns = [item.value for item in ast.walk(node) if isinstance(item, ast.Return)]
            [made] = [value for value in returns if isinstance(value, ast.Dict)]
            return [key.value for key in made.keys if isinstance(key, ast.Constant)]
    raise LookupError(f"{path} has no function {function}")


def literals(pattern: str, *places: str) -> list[str]:
    """Texts in the sources of which `pattern` is the whole, or a word of an f-string."""
    found: set[str] = set()
    for place in places:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.update(_words(pattern, node.value))
    return sorted(found)


def _words(pattern: str, text: str) -> Iterator[str]:
    if re.fullmatch(pattern, text) and not text.endswith(("-", "_")) and text not in PACKAGES:
        yield text
    elif match := re.match(rf"# TYPE ({pattern}) ", f"{text} "):
        yield match[1]


def _struct(kind: type[msgspec.Struct]) -> str:
    fields = (
        field.name if field.required else f"[{field.name}]"
        for field in msgspec.structs.fields(kind)
    )
    return f"{kind.__struct_config__.tag or kind.__name__}: {' '.join(fields)}"


def _below(base: type) -> Iterator[type[msgspec.Struct]]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("pds_engine"):
            yield kind
            yield from _below(kind)


def _indented(lines: Iterable[str]) -> str:
    listed = list(lines)
    if not any(" " in line for line in listed):
        listed = ["  ".join(listed)]
    wrapped = (
        textwrap.fill(line, 96, subsequent_indent="    ", break_on_hyphens=False) for line in listed
    )
    return textwrap.indent("".join(f"{line}\n" for line in wrapped), "  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(text()))
    else:
        print(text())


if __name__ == "__main__":
    main()
